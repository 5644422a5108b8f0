"""How one setting is chosen among those tried: by a limit on leakage, or at the knee of the front.

Both rules see utility and leakage as measured in tuning; nothing of the test set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl_sim.statistics import Floats, pareto_front

Rule = Literal["constrained", "knee"]


@dataclass(frozen=True)
class Point:
    """What a setting reached, on average over seeds and attacks.

    Args:
        utility: higher is better.
        leakage: lower is better; a metric of which lower values leak more has its sign changed.
        seconds: that the defence took.
    """

    utility: float
    leakage: float
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Args:
        index: of the point.
        why: one sentence.
        satisfied: whether it keeps the limit; ``None`` where there is none.
    """

    index: int
    why: str
    satisfied: bool | None = None


def choose(points: Sequence[Point], rule: Rule, limit: float | None = None) -> Choice | None:
    """Choose one of several points.

    Args:
        points: in the order in which they were tried; one with a number missing is never chosen.
        rule: ``"constrained"``: of those that leak no more than ``limit`` the most useful; where
            there is none, the least leaking one. ``"knee"``: of the Pareto front the point that is
            farthest beyond the line between the front's ends, both axes scaled to [0, 1] by these
            ends (Branke et al., "Finding knees in multi-objective optimization", PPSN 2004, and
            others); an end where the front has no such point.
        limit: of leakage, for ``"constrained"``.

    Returns:
        The choice: among equals what took fewer seconds, then what was tried first. ``None``
        without a point.
    """
    known = [
        number
        for number, point in enumerate(points)
        if not np.isnan([point.utility, point.leakage]).any()
    ]
    if not known:
        return None
    if rule == "knee":
        return _knee(points, known)
    assert limit is not None
    within = [number for number in known if points[number].leakage <= limit]
    if within:
        best = max(points[number].utility for number in within)
        chosen = _cheapest(points, [n for n in within if points[n].utility == best])
        return Choice(chosen, f"the most useful of {len(within)} that keep the limit", True)
    least = min(points[number].leakage for number in known)
    leaking = [number for number in known if points[number].leakage == least]
    best = max(points[number].utility for number in leaking)
    chosen = _cheapest(points, [n for n in leaking if points[n].utility == best])
    return Choice(chosen, "none keeps the limit; it leaks least", False)


def _knee(points: Sequence[Point], known: Sequence[int]) -> Choice:
    leakage = np.array([points[number].leakage for number in known])
    utility = np.array([points[number].utility for number in known])
    front = pareto_front(leakage, utility)
    numbers = [number for number, on_it in zip(known, front, strict=True) if on_it]
    beyond = _beyond(leakage[front], utility[front])
    chosen = _cheapest(
        points, [n for n, far in zip(numbers, beyond, strict=True) if np.isclose(far, beyond.max())]
    )
    if beyond.max() > 0:
        return Choice(chosen, f"the knee of a front of {len(numbers)}")
    return Choice(chosen, f"an end of a front of {len(numbers)}, which has no knee")


def _beyond(leakage: Floats, utility: Floats) -> Floats:
    """Return how far points of a front lie beyond the line between its ends; below it, less than 0.

    On a front, who leaks most is most useful, so the ends are (0, 0) and (1, 1).
    """
    spans = np.ptp(leakage), np.ptp(utility)
    if not all(spans):
        return np.zeros(len(leakage))
    leaks = (leakage - leakage.min()) / spans[0]
    worth = (utility - utility.min()) / spans[1]
    beyond: Floats = (worth - leaks) / np.sqrt(2)
    return beyond


def _cheapest(points: Sequence[Point], numbers: Sequence[int]) -> int:
    """Return the one that took fewest seconds, then the first; unknown seconds are the most."""
    return min(numbers, key=lambda n: (np.nan_to_num(points[n].seconds, nan=np.inf), n))
