"""A hospital's call that always comes to a reply, and tells how long it took.

Flower catches what is an ``Exception`` and no more: ``SystemExit`` ends this process, or an actor
of Ray, and a call that returns no message leaves the server waiting.
"""

import logging
import time
import traceback
from collections.abc import Callable
from functools import wraps

from flwr.app import ConfigRecord, Context, Message
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl_sim.errors import FlSimError
from fl_sim.faults import cause, signals_noted

Call = Callable[[Message, Context], Message]
_OWN_TIME = "fl-sim-own-time"
_SECONDS = "seconds"
_log = logging.getLogger(__name__)
_clock = time.perf_counter


def answering(call: Call) -> Call:
    """Make a ClientApp's function reply whatever happens in it.

    What it raises becomes an error reply whose reason's first line is one sentence, the text of an
    FlSimError as it is; a traceback follows for anything else. What a signal's handler raises
    passes.
    """

    @wraps(call)  # Ray finds it by its name
    def answer(message: Message, context: Context) -> Message:
        return _answer(call, message, context)

    return answer


class GuardedApp(ClientApp):
    """A ClientApp that always replies, and stamps its replies with the seconds that it took.

    Args:
        app: the hospitals' side.
    """

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the app; see :func:`in_time` for the stamp."""
        began = _clock()
        reply = _answer(self._app, message, context)
        if not reply.has_error():
            reply.content[_OWN_TIME] = ConfigRecord({_SECONDS: _clock() - began})
        return reply


def guarded(app: ClientApp) -> ClientApp:
    """Return an app that always replies, once."""
    return app if isinstance(app, GuardedApp) else GuardedApp(app)


def in_time(reply: Message, limit: float | None) -> Message:
    """Take a reply's stamp off, and refuse it if the hospital's own time was above the limit.

    Args:
        reply: what a :class:`GuardedApp` sent; others pass as they are.
        limit: seconds; ``None`` for none.

    Returns:
        The reply, or an error reply that says that it was late.
    """
    if reply.has_error():
        return reply
    stamp = reply.content.pop(_OWN_TIME, None)
    seconds = stamp.get(_SECONDS) if isinstance(stamp, ConfigRecord) else None
    if limit is None or not isinstance(seconds, float) or seconds <= limit:
        return reply
    reason = f"it was late: it took {seconds:.1f} seconds, and a round's limit is {limit:g}"
    error = Error(ErrorCode.NODE_UNAVAILABLE, reason)
    return Message(error=error, metadata=reply.metadata)  # type: ignore[call-overload]


def _answer(call: Call, message: Message, context: Context) -> Message:
    with signals_noted() as noted:
        reply = _reply(call, message, context)
    if noted:  # whatever the call made of it
        raise noted[0]
    return reply


def _reply(call: Call, message: Message, context: Context) -> Message:
    try:
        reply = call(message, context)
        _check(reply, message)
        return reply
    except FlSimError as error:
        reason = str(error)
    except BaseException as error:
        _log.debug("Node %d failed.", message.metadata.dst_node_id, exc_info=True)
        reason = f"{cause(error)}\n{traceback.format_exc()}"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _check(reply: object, message: Message) -> None:
    """Refuse what the server could not tell whom it is from."""
    if not isinstance(reply, Message):
        raise FlSimError(f"its app returned a {type(reply).__name__}, not a message")
    sent, asked = reply.metadata, message.metadata
    if (sent.src_node_id, sent.reply_to_message_id) != (asked.dst_node_id, asked.message_id):
        raise FlSimError("its app returned a message that is no reply to the one that it got")
    if not (reply.has_error() or reply.has_content()):
        raise FlSimError("its app returned a message that holds nothing")
