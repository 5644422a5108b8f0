"""Progress of long work: a callback that any part can report to, and ignore."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Where long work reports to. The command line shows bars or plain lines; tests nothing."""

    def start(self, what: str, total: int) -> None:
        """A piece of work of ``total`` steps begins."""

    def step(self, note: str = "", advance: int = 1) -> None:
        """``advance`` steps of the current piece are done; ``note`` says how it stands."""

    def finish(self) -> None:
        """The current piece has ended."""


class Silent:
    """Progress that shows nothing."""

    def start(self, what: str, total: int) -> None:
        """Ignore."""

    def step(self, note: str = "", advance: int = 1) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


SILENT = Silent()


@contextmanager
def piece(progress: Progress, what: str, total: int) -> Iterator[Progress]:
    """Report the enclosed block as one piece of work."""
    progress.start(what, total)
    try:
        yield progress
    finally:
        progress.finish()
