"""Where in a tensor elements differ from the others: in units and taps, or just anywhere."""

import math

import numpy as np

from fl_sim.auditing.numbers import Mask

AGREEMENT = 0.95
"""Share of elements that must be as their row and column say. A gradient is a sum of products of
what comes in and what goes back, so elements that training never reaches lie in whole rows (units
that are off), columns and taps (inputs that are always zero)."""


def structured(mask: Mask, counted: Mask, shape: tuple[int, ...]) -> bool:
    """Whether elements lie where training's reach, or its lack, puts them.

    A single run of elements that begins or ends within a row is not such a place: it is what a
    writer leaves who begins at the first element.

    Args:
        mask: the elements, in their order.
        counted: elements that can be judged; others, such as zeros, fit any pattern.
        shape: of the tensor; the first dimension is of the units.
    """
    chosen = mask & counted
    if not chosen.any() or bool(chosen[counted].all()):
        return True
    if len(mask) == 2 * math.prod(shape):  # pairs of complex numbers
        shape = (*shape, 2)
    if len(shape) < 2 or len(mask) != math.prod(shape):
        return False
    grid, judged = chosen.reshape(shape[0], -1), counted.reshape(shape[0], -1)
    if _cut_run(chosen, counted, grid.shape[1]):
        return False
    return _agree(grid, judged) or _agree(~grid & judged, judged)


def _agree(grid: Mask, judged: Mask) -> bool:
    """Whether elements are those of chosen rows in chosen columns."""
    rows = grid.any(axis=1)
    for _ in range(2):
        columns = _mostly(grid[rows], judged[rows], 0)
        rows = _mostly(grid[:, columns], judged[:, columns], 1)
    wrong = ((rows[:, None] & columns) != grid) & judged
    few = min(int(grid.sum()), int((~grid & judged).sum()))
    return bool(wrong.sum() <= (1 - AGREEMENT) * few)


def _mostly(grid: Mask, judged: Mask, axis: int) -> Mask:
    return np.asarray(2 * grid.sum(axis=axis) > judged.sum(axis=axis), np.bool_)


def _cut_run(chosen: Mask, counted: Mask, row: int) -> bool:
    """Whether elements are one run, an end of which lies within a row of so many elements."""
    places = np.flatnonzero(counted)
    own = np.flatnonzero(chosen[places])
    first, last = int(own[0]), int(own[-1])
    if last - first + 1 != len(own):
        return False
    rows = places // row
    begins = first == 0 or rows[first - 1] != rows[first]
    ends = last == len(places) - 1 or rows[last + 1] != rows[last]
    return not (begins and ends)
