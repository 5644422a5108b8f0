"""A grid that reports how many hospitals have replied while a round waits for the rest."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fl_sim.engine.through import ThroughGrid, each_reply
from fl_sim.progress import Progress, piece


class WatchedGrid(ThroughGrid):
    """A grid that reports each reply when it comes, as a step of a piece of work.

    Args:
        grid: the grid behind it.
        progress: where to report. Questions (who a node is) are answered at once and not reported.
    """

    def __init__(self, grid: Grid, progress: Progress) -> None:
        super().__init__(grid)
        self._progress = progress

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies, as the grid behind it does."""
        asked = list(messages)
        if not asked or asked[0].metadata.message_type == MessageType.QUERY:
            return super().send_and_receive(asked, timeout=timeout)
        with (
            piece(self._progress, "hospitals back", len(asked)),
            _each_pulled(self.innermost, self._progress.step),
        ):
            return list(super().send_and_receive(asked, timeout=timeout))

    def each_reply(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages and yield the replies as they come, as the grid behind it does."""
        asked = list(messages)
        if not asked or asked[0].metadata.message_type == MessageType.QUERY:
            yield from super().each_reply(asked, timeout=timeout)
            return
        with piece(self._progress, "hospitals back", len(asked)):
            for reply in each_reply(self._grid, asked, timeout):
                self._progress.step()
                yield reply


@contextmanager
def _each_pulled(grid: Grid, tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` for each reply that a grid pulls.

    A grid waits in its own ``send_and_receive`` by pulling again and again, with its own time limit
    and its own way to be stopped; only its pulls show what has come.
    """
    pull = grid.pull_messages

    def pull_and_tell(message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(pull(message_ids))
        for _ in replies:
            tell()
        return replies

    grid.pull_messages = pull_and_tell  # type: ignore[method-assign]
    try:
        yield
    finally:
        grid.pull_messages = pull  # type: ignore[method-assign]
