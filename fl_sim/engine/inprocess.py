"""The engine without Ray: hospitals run one after another in this process.

Errors in a hospital can be stepped into with a debugger, and a run starts at once; otherwise it
behaves as Ray does: messages are copied, errors become error replies, and each node has a context
that lasts.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.engine.base import ENGINES, EngineSettings
from fl_sim.engine.guard import guarded, in_time
from fl_sim.engine.quiet import quiet_flower

T = TypeVar("T")
_RUN = 1
_SERVER = 1
_FIRST_NODE = 1001  # so that nobody mistakes a node for the hospital of that number


class InProcessGrid(Grid):
    """A Flower grid whose nodes are calls of one ClientApp in this process.

    A message is worked on when its reply is pulled, in the order in which messages were pushed.

    Args:
        client_app: what every node runs.
        hospitals: number of nodes; node ``i`` gets partition ``i``.
    """

    def __init__(self, client_app: ClientApp, hospitals: int) -> None:
        self._client_app = guarded(client_app)
        self._run = Run.create_empty(_RUN)
        self._contexts = {
            _FIRST_NODE + number: Context(
                run_id=_RUN,
                node_id=_FIRST_NODE + number,
                node_config={PARTITION_ID_KEY: number, NUM_PARTITIONS_KEY: hospitals},
                state=RecordDict(),
                run_config={},
            )
            for number in range(hospitals)
        }
        self._pending: dict[str, Message] = {}
        self._limit: float | None = None
        self._sent = 0
        # A Message asks the process who is writing it.
        TaskIdentity.run_id = _RUN
        TaskIdentity.task_id = 1
        TaskIdentity.node_id = _SERVER

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; deprecated in Flower, whose own constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, in the order of their hospitals."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages to be worked on; returns their ids."""
        ids = []
        for message in messages:
            self._sent += 1
            name = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = name
            self._pending[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Work on the messages of these ids and return the replies."""
        return [in_time(self._reply(self._pending.pop(name)), self._limit) for name in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Work on messages one after another.

        A hospital that takes more than ``timeout`` seconds is let finish, and its reply is an error
        that says that it was late. Those behind it have their own time.
        """
        ids = list(self.push_messages(messages))
        self._limit = timeout
        try:
            # One after another, so that who watches sees each reply when it comes.
            return [reply for name in ids for reply in self.pull_messages([name])]
        finally:
            self._limit = None

    def each_reply(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Work on a message when its reply is asked for, as :meth:`send_and_receive` does."""
        for name in list(self.push_messages(messages)):
            yield in_time(self._reply(self._pending.pop(name)), timeout)

    def _reply(self, message: Message) -> Message:
        # Arrays hold immutable bytes, so a deep copy is cheap and still shares nothing that either
        # side can write to.
        message = copy.deepcopy(message)
        context = self._contexts[message.metadata.dst_node_id]
        reply = self._client_app(message, context)
        reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
        return copy.deepcopy(reply)


def run_inprocess(
    settings: EngineSettings,
    main: Callable[[Grid], T],
    client_app: ClientApp,
    hospitals: int,
) -> T:
    """Run a federation in this process; see :func:`fl_sim.engine.base.run`."""
    with quiet_flower(settings.verbose):
        return main(InProcessGrid(client_app, hospitals))


ENGINES.register("inprocess", "hospitals one after another in this process")(run_inprocess)
