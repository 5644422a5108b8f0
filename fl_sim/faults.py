"""What goes wrong in a component from outside, put in one sentence that names the component.

A plug-in, a hospital or a defence may raise anything, ``SystemExit`` too, which would end the
program without a word. Only what the user sends (Ctrl-C and other signals) may end it.
"""

import errno
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fl_sim.errors import FlSimError, legible

LONGEST = 500
"""Characters of a cause that a sentence quotes."""

_log = logging.getLogger(__name__)
WORDED = (Exception, SystemExit, KeyboardInterrupt)
"""What code raises on purpose or by mistake."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def blaming(
    what: str,
    caught: tuple[type[BaseException], ...] = (BaseException,),
    sentences: bool = True,
) -> Iterator[None]:
    """Let whatever is raised within the block say in one sentence where it was raised.

    What a signal's handler raises passes as it is, and so do a full disk and an FlSimError that is
    an OSError, too: no fault of the component that happened to write. The traceback is logged at
    level DEBUG.

    Args:
        what: the component, as a sentence begins: ``"Round 2: the strategy 'krum'"``.
        caught: what it may raise; anything else passes as it is.
        sentences: whether an FlSimError gets ``what`` before it, too, or passes as it is.

    Raises:
        FlSimError: ``"<what>: <sentence>"`` of an FlSimError; of anything else ``"<what> failed:
            <its type and the first line of its text>."``
    """
    with signals_noted() as noted:
        try:
            yield
        except caught as error:
            if noted or _is_the_machines(error):
                raise
            if isinstance(error, FlSimError):
                if not sentences:
                    raise
                raise FlSimError(f"{what}: {error}") from error
            _log.debug("%s failed.", what, exc_info=True)
            raise FlSimError(f"{what} failed: {cause(error)}.") from error


@contextmanager
def signals_noted() -> Iterator[list[BaseException]]:
    """Note what signals' handlers raise within the block, for what catches all that code raises.

    A ``KeyboardInterrupt`` that code raises by itself cannot otherwise be told from Ctrl-C.

    Yields:
        A list that gets each exception that a handler raises. Outside the main thread, where no
        handler runs, it stays empty.
    """
    noted: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number, handler in ours.items():
        signal.signal(number, _noting(handler, noted))
    try:
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def cause(error: BaseException) -> str:
    """Return an exception's type and the first line of its text."""
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    line = first_line(text)
    return f"{name}: {line}".rstrip(".") if line else name


def first_line(text: str, longest: int = LONGEST) -> str:
    """Return the first line that says something, printable and cut after ``longest`` characters."""
    line = next((line.strip() for line in text[: 100 * LONGEST].splitlines() if line.strip()), "")
    shown = legible(line[:longest], None)
    return shown if len(line) <= longest else f"{shown}..."


def _is_the_machines(error: BaseException) -> bool:
    return isinstance(error, OSError) and (
        error.errno in _NO_SPACE or isinstance(error, FlSimError)
    )


def _noting(
    handler: Callable[[int, FrameType | None], Any], noted: list[BaseException]
) -> Callable[[int, FrameType | None], None]:
    def note(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            noted.append(error)
            raise

    return note
