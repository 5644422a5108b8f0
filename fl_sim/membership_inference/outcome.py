"""What a membership attack finds: over all images, and of each image and patient.

Over all images it is the area under the ROC curve, and how many members are found at a false
positive rate so low that the attacker can be sure of them (Carlini et al., S&P 2022, section III).
What is said of single images and patients is their owner's: it names those at risk.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.membership_inference.base import MembershipSettings, Scores
from fl_sim.membership_inference.roc import auc_error, auc_of, chance_at, threshold_at
from fl_sim.membership_inference.signals import Floats
from fl_sim.statistics import within

if TYPE_CHECKING:
    import pandas as pd

SURE, FAIRLY_SURE = 0.001, 0.01
"""False positive rates that are reported: of a thousand fresh images one is taken for a member."""
_QUANTILE = 1.959963984540054


class Range(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Membership:
    """What a membership attack found in a model.

    Args:
        settings: which attack, with how many reference models.
        scores: of all images, members before the fresh ones.
        members: how many of them are members.
        patients: of each image, where known.
    """

    settings: MembershipSettings
    scores: Scores = field(repr=False)
    members: int
    patients: NDArray[np.str_] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.members < 1 or self.nonmembers < 1:
            raise FlSimError(
                f"Membership is measured on members and on images that are none, and there are "
                f"{self.members} and {self.nonmembers}; give one or more of each."
            )

    @property
    def nonmembers(self) -> int:
        """Images that the model has never seen."""
        return len(self.scores.order) - self.members

    @property
    def auc(self) -> float:
        """Area under the ROC curve; guessing has 0.5."""
        return auc_of(self._seen, self._fresh)

    @property
    def auc_error(self) -> float:
        """Standard error of that area over the images (DeLong)."""
        return auc_error(self._seen, self._fresh)

    @property
    def auc_interval(self) -> Range:
        """95 % interval of the area over the images, within [0, 1]."""
        error = self.auc_error
        if not math.isfinite(error):
            return Range(math.nan, math.nan)
        return Range(*within(self.auc, _QUANTILE * error, (0.0, 1.0)))

    def tpr(self, rate: float) -> float:
        """Return the share of members that is found at a false positive rate.

        Args:
            rate: share of fresh images, in [0, 1], that at most is taken for members. With fewer
                than ``1 / rate`` of them none may be.
        """
        _check_rate(rate)
        return float(np.mean(self._seen > threshold_at(self._fresh, rate)))

    def tpr_interval(self, rate: float) -> Range:
        """Return Wilson's 95 % interval of that share over members.

        The threshold is taken as it is: how it would move with other fresh images is not in it.
        """
        from scipy.stats import binomtest

        found = round(self.tpr(rate) * self.members)
        ends = binomtest(found, self.members).proportion_ci(method="wilson")
        return Range(float(ends.low), float(ends.high))

    def chance(self, rate: float) -> float:
        """Return the share of members that guessing finds so, on average: about the rate."""
        _check_rate(rate)
        return chance_at(self.nonmembers, rate)

    @cached_property
    def records(self) -> "pd.DataFrame":
        """What the attack says of each image: its owner's, and nobody else's.

        A row an image, those that stand out first: ``record``, its place among the members or the
        fresh images that were given; ``member``; ``patient``, where known; ``risk``, the attack's
        score in [0, 1]; ``false_alarms``, the share of fresh images that stand out as much,
        ``(1 + k) / (1 + n)``; and whether it is found at a false positive rate of 1 % and 0.1 %.
        """
        import pandas as pd

        order, fresh = self.scores.order, np.sort(self._fresh)
        member = np.arange(len(order)) < self.members
        above = len(fresh) - np.searchsorted(fresh, order, side="left") - ~member  # but itself
        table = {
            "record": np.where(member, np.arange(len(order)), np.arange(len(order)) - self.members),
            "member": member,
            **({} if self.patients is None else {"patient": self.patients}),
            "risk": self.scores.risk,
            "false_alarms": (1 + above) / (1 + len(fresh) - ~member),
            "found_at_1_percent": order > threshold_at(fresh, FAIRLY_SURE),
            "found_at_1_per_mille": order > threshold_at(fresh, SURE),
        }
        ranks = np.argsort(-order, kind="stable")
        return pd.DataFrame(table).iloc[ranks].reset_index(drop=True)

    @cached_property
    def by_patient(self) -> "pd.DataFrame":
        """The same of each patient with images among the members: the owner's, too.

        ``risk`` is the highest of a patient's images, and ``false_alarms`` the probability that one
        of as many fresh images stands out as much, ``1 - (1 - p) ** images`` for the smallest ``p``
        of an image: who has many images stands out more easily by chance.

        Raises:
            FlSimError: if no patients are known.
        """
        if self.patients is None:
            raise FlSimError(
                "No patient of these images is known, so risk is told by image alone; give images "
                "as a Split with patients."
            )
        seen = self.records[self.records["member"]]
        grouped = seen.groupby("patient", sort=False)
        table = grouped.agg(
            images=("record", "size"),
            risk=("risk", "max"),
            false_alarms=("false_alarms", "min"),
            found_at_1_percent=("found_at_1_percent", "sum"),
            found_at_1_per_mille=("found_at_1_per_mille", "sum"),
        )
        table["false_alarms"] = 1 - (1 - table["false_alarms"]) ** table["images"]
        return table.sort_values("false_alarms", kind="stable").reset_index()

    def as_dict(self) -> dict[str, Any]:
        """Return what may leave: numbers over all images, and none of an image or patient."""
        return {
            "attack": self.settings.name,
            "mode": self.settings.mode,
            "references": self.settings.references,
            "members": self.members,
            "nonmembers": self.nonmembers,
            "auc": self.auc,
            "auc_95_percent": list(self.auc_interval),
            "auc_of_guessing": 0.5,
            "tpr": [
                {
                    "false_positive_rate": rate,
                    "found": self.tpr(rate),
                    "found_95_percent": list(self.tpr_interval(rate)),
                    "found_by_guessing": self.chance(rate),
                }
                for rate in (SURE, FAIRLY_SURE)
            ],
        }

    def save_records(self, path: Path | str) -> Path:
        """Write :attr:`records` as CSV that only its owner can read (mode 0600)."""
        return write_atomically(Path(path), self.records.to_csv(index=False).encode(), private=True)

    @property
    def _seen(self) -> Floats:
        return self.scores.order[: self.members]

    @property
    def _fresh(self) -> Floats:
        return self.scores.order[self.members :]


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise FlSimError(f"A false positive rate lies between 0 and 1, not at {rate}.")
