"""A decision: every criterion of a policy beside the figure that was measured for it.

It fails closed. A criterion without a figure refuses; so does a figure that is not finite. Only a
criterion that the policy excepts by name may go unmeasured, and one that was measured and missed
refuses all the same.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fl_sim.egress.policy import Limit, Policy, limits, worded

Status = Literal["met", "missed", "not run", "excepted"]
Verdict = Literal["release", "refuse"]
UNTOLD = "the check failed; the owner's folder says why"
"""Why there is no figure, for a record: an error's own words can hold names from the file."""

SETTLED = "a criterion was missed before, and further ones were not asked for"
"""Likewise, where the owner wanted no more than a decision."""

REFUSING: tuple[Status, ...] = ("missed", "not run")


@dataclass(frozen=True)
class Figure:
    """What was measured for a criterion.

    Args:
        value: the figure; ``None`` where it could not be measured.
        low, high: its 95 % interval, where it has one.
        why: it could not be measured, in words of this program's alone.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a figure, and it is finite."""
        ends = [end for end in (self.value, self.low, self.high) if end is not None]
        return self.value is not None and all(math.isfinite(end) for end in ends)


class Plain(BaseModel):
    """Base of what a record holds: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Criterion(Plain):
    """A criterion, what was asked, what was measured, and what follows.

    Args:
        name: see :class:`fl_sim.egress.policy.Limit`.
        question: in words.
        asked: what the policy asks, in words.
        threshold: the same as a number.
        unit: of the numbers.
        value, low, high: the figure and its 95 % interval; ``None`` where there is none.
        judged: the number that was compared with the threshold.
        status: ``"met"``, ``"missed"``, ``"not run"`` or ``"excepted"``.
        reason: of the status, in a sentence.
    """

    name: str
    question: str
    asked: str
    threshold: float
    unit: str
    value: float | None
    low: float | None
    high: float | None
    judged: float | None
    status: Status
    reason: str

    @property
    def refuses(self) -> bool:
        """Whether it refuses the model."""
        return self.status in REFUSING


def judge(
    policy: Policy, figures: Mapping[str, Figure], asked: Iterable[Limit] | None = None
) -> list[Criterion]:
    """Compare what was measured with what a policy asks.

    Args:
        policy: of the data owner.
        figures: what was measured, by the criterion's name.
        asked: the criteria that count here; by default all of the policy.
    """
    known = limits(policy) if asked is None else asked
    return [_judged(policy, limit, figures.get(limit.name, Figure())) for limit in known]


def verdict(criteria: Iterable[Criterion]) -> Verdict:
    """Return whether a model may leave; without a criterion it may not."""
    found = list(criteria)
    return "release" if found and not any(one.refuses for one in found) else "refuse"


def _judged(policy: Policy, limit: Limit, figure: Figure) -> Criterion:
    judged = _compared(policy, limit, figure) if figure.measured else None
    if judged is None:
        status, reason = _unmeasured(policy, limit, figure)
    else:
        met = judged <= limit.most if limit.most is not None else judged >= (limit.least or 0.0)
        status = "met" if met else "missed"
        reason = f"{worded(judged, limit.unit)}, and the policy asks for {limit.asked()}"
    most = limit.least if limit.most is None else limit.most
    return Criterion(
        name=limit.name,
        question=limit.question,
        asked=limit.asked(),
        threshold=float(most or 0.0),
        unit=limit.unit,
        value=figure.value if figure.measured else None,
        low=figure.low if figure.measured else None,
        high=figure.high if figure.measured else None,
        judged=judged,
        status=status,
        reason=reason,
    )


def _unmeasured(policy: Policy, limit: Limit, figure: Figure) -> tuple[Status, str]:
    why = figure.why or "it was not measured"
    excepted = policy.exceptions.get(limit.name)
    if excepted is not None:
        return "excepted", f"could not be checked ({why}); the policy excepts it: {excepted}"
    return "not run", f"could not be checked: {why}"


def _compared(policy: Policy, limit: Limit, figure: Figure) -> float:
    """Return the number that has to keep the limit."""
    assert figure.value is not None
    worse = figure.high if limit.most is not None else figure.low
    return figure.value if policy.judged_by == "value" or worse is None else worse
