"""Who trains in a round: which node is which hospital, and which of them are drawn."""

import time
from collections.abc import Iterable, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_sim.engine.through import ThroughGrid
from fl_sim.errors import FlSimError
from fl_sim.faults import first_line
from fl_sim.randomness import numpy_generator
from strategies.uploads import Rejected, read_hospital


class CohortGrid(ThroughGrid):
    """A grid as an inner strategy sees it: it has just the nodes that it is to ask.

    Args:
        grid: the whole grid.
        nodes: the cohort's node ids.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        super().__init__(grid)
        self._nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the cohort's nodes."""
        return list(self._nodes)


def cohort_size(hospitals: int, cohort: int | float) -> int:
    """Return how many hospitals train in a round: a count, or a fraction of all, at least one.

    Raises:
        FlSimError: if it is a count that is not between 1 and ``hospitals``, or a fraction that
            is not above 0 and at most 1.
    """
    if isinstance(cohort, float):
        if not 0 < cohort <= 1:
            raise FlSimError(f"The cohort is {cohort:g}, but a fraction is above 0 and at most 1.")
        return max(1, round(cohort * hospitals))
    if not 1 <= cohort <= hospitals:
        raise FlSimError(f"The cohort is {cohort}, but there are {hospitals} hospitals.")
    return cohort


def sample_cohort(
    hospitals: Sequence[int], cohort: int | float, seed: int, server_round: int
) -> tuple[int, ...]:
    """Draw the hospitals that train in a round, sorted; the same for the same arguments.

    Args:
        hospitals: numbers of those that may be drawn.
        cohort: how many, see :func:`cohort_size`.
        seed: of the scenario.
        server_round: from 1.
    """
    size = cohort_size(len(hospitals), cohort)
    generator = numpy_generator(seed, "cohort", server_round)
    drawn = generator.choice(len(hospitals), size=size, replace=False)
    return tuple(sorted(hospitals[int(place)] for place in drawn))


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
        node = reply.metadata.src_node_id
        try:
            hospital = read_hospital(reply, hospitals)
        except Rejected as rejected:
            raise FlSimError(
                f"Node {node} cannot take part: {first_line(str(rejected)).rstrip('.')}."
            ) from None
        if hospital in found:
            raise FlSimError(f"Two nodes say that they are hospital {hospital}.")
        found[hospital] = node
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
