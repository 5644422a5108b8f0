"""Grids that stand in front of another grid."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.app.error import Error
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_sim.engine.guard import in_time

ENGINE_SECONDS = 120.0
"""What an engine may take itself in a round, to start processes and to carry messages."""


class ThroughGrid(Grid):
    """A grid that passes everything on; a base for those that change something.

    Args:
        grid: the grid behind it.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def innermost(self) -> Grid:
        """The grid behind all others, which exchanges the messages."""
        return self._grid.innermost if isinstance(self._grid, ThroughGrid) else self._grid

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def each_reply(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages and yield the replies as they come; see :func:`each_reply`."""
        return each_reply(self._grid, messages, timeout)


def each_reply(
    grid: Grid, messages: Iterable[Message], timeout: float | None = None
) -> Generator[Message, None, None]:
    """Exchange messages for replies, one at a time where a grid can do that.

    A grid can where its class has an ``each_reply`` with the arguments of ``send_and_receive``,
    which are Flower's, and does not change the latter alone. From any other grid the replies come
    all at once. What is not taken is not worked on.

    Args:
        grid: any Flower grid.
        messages: to its nodes.
        timeout: seconds; what it means is the grid's.
    """
    if not _one_at_a_time(grid):
        yield from grid.send_and_receive(messages, timeout=timeout)
        return
    yield from grid.each_reply(messages, timeout=timeout)  # type: ignore[attr-defined]


def _one_at_a_time(grid: Grid) -> bool:
    """Whether a grid's ``each_reply`` does what its ``send_and_receive`` does."""
    if "send_and_receive" in vars(grid):
        return False
    places = {
        name: place
        for place, kind in reversed(list(enumerate(type(grid).__mro__)))
        for name in ("each_reply", "send_and_receive")
        if name in vars(kind)
    }
    return "each_reply" in places and places["each_reply"] <= places["send_and_receive"]


class DeployedGrid(ThroughGrid):
    """A grid of the deployment runtime whose error replies tell which node they are about.

    The SuperLink answers in its own name for a node that it has lost, and so a server would take
    the node's silence for a reply that is late.
    """

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies."""
        asked = list(messages)
        replies = list(self._grid.send_and_receive(asked, timeout=timeout))
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in asked}
        return [_attributed(reply, nodes) for reply in replies]


def _attributed(reply: Message, nodes: dict[str, int]) -> Message:
    metadata = reply.metadata
    node = nodes.get(metadata.reply_to_message_id)
    if not reply.has_error() or metadata.src_node_id != SUPERLINK_NODE_ID or node is None:
        return reply
    metadata.__dict__["_src_node_id"] = node
    if reply.error.code != ErrorCode.NODE_UNAVAILABLE:
        return reply
    error = Error(ErrorCode.NODE_UNAVAILABLE, "its SuperNode is no longer connected")
    return Message(error=error, metadata=metadata)  # type: ignore[call-overload]


class OwnTimeGrid(ThroughGrid):
    """A grid whose time limit counts each hospital's own time, not what it waits for its turn.

    Args:
        grid: a grid whose nodes run a :class:`fl_sim.engine.guard.GuardedApp`.
        at_once: tells how many hospitals work at once, when a round begins.
    """

    def __init__(self, grid: Grid, at_once: Callable[[], int]) -> None:
        super().__init__(grid)
        self._at_once = at_once

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies; one that comes late is an error reply.

        The wait ends when hospitals that keep to ``timeout`` seconds must all have had their turn;
        those behind one that never ends may then be without a reply.
        """
        messages = list(messages)
        replies = self._grid.send_and_receive(messages, timeout=self._wait(messages, timeout))
        return [in_time(reply, timeout) for reply in replies]

    def each_reply(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages and yield the replies as they come, as :meth:`send_and_receive` does."""
        messages = list(messages)
        for reply in each_reply(self._grid, messages, self._wait(messages, timeout)):
            yield in_time(reply, timeout)

    def _wait(self, messages: list[Message], timeout: float | None) -> float | None:
        if timeout is None:
            return None
        return timeout * math.ceil(len(messages) / max(1, self._at_once())) + ENGINE_SECONDS
