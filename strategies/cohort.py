"""Which node is which hospital, and a grid that shows only those of a round's cohort."""

import time
from collections.abc import Iterable

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_sim.errors import FlSimError


class CohortGrid(Grid):
    """A grid as an inner strategy sees it: it has just the nodes that it is to ask.

    Args:
        grid: the whole grid.
        nodes: the cohort's node ids.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

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
        """Return the cohort's nodes."""
        return list(self._nodes)

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


def map_nodes(grid: Grid, hospitals: int, timeout: float) -> dict[int, int]:
    """Ask every node for its hospital number, once: node ids are random and come in no order.

    Args:
        grid: the whole grid.
        hospitals: how many hospitals there are to be.
        timeout: seconds to wait for them to connect, and then to answer.

    Returns:
        Node id to hospital, in the hospitals' order.

    Raises:
        FlSimError: if hospitals are missing, fail, or claim the same number.
    """
    nodes = _wait_for(grid, hospitals, timeout)
    messages = [
        Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout):
        if reply.has_error():
            raise FlSimError(f"A hospital cannot be reached: {reply.error.reason}")
        config = next(iter(reply.content.config_records.values()))
        hospital = config["hospital"]
        if not isinstance(hospital, int) or hospital in found:
            raise FlSimError(f"Two nodes say that they are hospital {hospital!r}.")
        found[hospital] = reply.metadata.src_node_id
    missing = [number for number in range(hospitals) if number not in found]
    if missing:
        raise FlSimError(
            f"No node is hospital {', '.join(map(str, missing))}; {len(found)} of {hospitals} "
            f"hospitals answered within {timeout:g} seconds."
        )
    return {found[number]: number for number in range(hospitals)}


def _wait_for(grid: Grid, hospitals: int, timeout: float) -> list[int]:
    end = time.monotonic() + timeout
    while len(nodes := list(grid.get_node_ids())) < hospitals:
        if time.monotonic() >= end:
            raise FlSimError(
                f"Only {len(nodes)} of {hospitals} hospitals connected within {timeout:g} seconds."
            )
        time.sleep(1.0)
    return nodes
