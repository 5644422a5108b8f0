"""What was measured, as means over seeds with their intervals, and the words for it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from experiments.report.runs import IDENTIFIED, Group
from fl_sim.metrics.guessing import FLOOR, FLOOR_HIGH, MOST_IMAGES, blind_guessing
from fl_sim.metrics.intervals import metric_interval
from fl_sim.metrics.vocabulary import describe, known, names_of
from fl_sim.results import STAGES
from fl_sim.statistics import Interval, mean_interval
from fl_sim.words import CHOSEN, NO_EXTRACTION, RAW, STRONGEST, SUMMED_UP

if TYPE_CHECKING:
    import pandas as pd

CHANCE = "identification_chance"
"""What one blind guess finds."""

_RESTORED = {
    "affine": "affine, by pixel",
    "affine_channel": "affine, by channel",
    "affine_global": "affine, all alike",
    "affine_robust": "affine, robust",
}
"""What restorations are called whose names are short for it."""


class Measurements:
    """The numbers of one group, by round, stage, metric and extraction.

    Args:
        group: its runs.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        rows: pd.DataFrame = group.table
        keys = ["round", "stage", "extraction", "metric"]
        found: dict[Any, list[float]] = rows.groupby(keys, sort=False)["value"].agg(list).to_dict()
        self._values: dict[tuple[int, str, str, str], list[float]] = {
            (int(r), str(s), str(e), str(m)): values for (r, s, e, m), values in found.items()
        }
        self._last_rounds: dict[tuple[str, str, str], int] = {}
        for key in sorted(self._values):
            self._last_rounds[key[1:]] = key[0]
        self._intervals: dict[tuple[int, str, str, str], Interval] = {}
        self.rounds = sorted({key[0] for key in self._values})
        self.stages = [s for s in STAGES if any(key[1] == s for key in self._values)]
        """Stages of the whole; single attackers' are in :attr:`hospitals`."""
        self.hospitals = sorted({k[1] for k in self._values if ":" in k[1]}, key=_hospital)

    def get(
        self,
        stage: str,
        metric: str,
        extraction: str = NO_EXTRACTION,
        server_round: int | None = None,
    ) -> Interval | None:
        """Return a mean over seeds with its interval; ``None`` where it was not measured.

        Args:
            stage: for example ``"release"``, or ``"upload:1"`` for one attacker.
            metric: as in the long table.
            extraction: as in the long table.
            server_round: the last one in which it was measured, where not given.
        """
        if server_round is None:
            server_round = self._last_rounds.get((stage, extraction, metric), -1)
        key = (server_round, stage, extraction, metric)
        if key not in self._intervals and key in self._values:
            column = metric if extraction not in SUMMED_UP else f"{metric} {extraction}"
            self._intervals[key] = metric_interval(
                column,
                self._values[key],
                lambda name: self._values.get((server_round, stage, NO_EXTRACTION, name), []),
            )
        return self._intervals.get(key)

    def mean(self, stage: str, metric: str, extraction: str = NO_EXTRACTION) -> float:
        """Return the mean over seeds of the last measured round, or ``nan``."""
        found = self.get(stage, metric, extraction)
        return math.nan if found is None else found.mean

    def total(self, stage: str, metric: str) -> Interval | None:
        """Return the mean over seeds of the sum over rounds; ``None`` where not measured."""
        by_round = [
            values for key, values in self._values.items() if key[1:] == (stage, "-", metric)
        ]
        if not by_round or len({len(values) for values in by_round}) > 1:
            return None
        return mean_interval([sum(values) for values in zip(*by_round, strict=True)])

    def extractions(self, stage: str) -> list[str]:
        """Return the extractions measured at a stage: raw, then restorations and variants."""
        found = [k[2] for k in self._values if k[1] == stage and k[3] == "ssim"]
        return [name for name in dict.fromkeys(found) if name not in (CHOSEN, STRONGEST)]

    def metrics(self, stage: str, extraction: str = NO_EXTRACTION) -> list[str]:
        """Return the metrics measured at a stage, in the table's order."""
        return list(dict.fromkeys(k[3] for k in self._values if k[1:3] == (stage, extraction)))

    @cached_property
    def leaks(self) -> list[str]:
        """The metrics of extractions that were measured, in order; without :data:`IDENTIFIED`."""
        found = {k[3] for k in self._values if k[2] != NO_EXTRACTION}
        return sorted(found - {IDENTIFIED}, key=lambda name: describe(name).place)

    @cached_property
    def main_leaks(self) -> list[str]:
        """The metrics of extractions that speak for the leak: identification before all others."""
        parts = known(IDENTIFIED).best_of
        first = [IDENTIFIED] if any(part in self.leaks for part in parts) else []
        others = (name for name in self.leaks if name not in parts)
        return first + [name for name in others if "sweep" in known(name).shown]

    @cached_property
    def utilities(self) -> list[str]:
        """The metrics of the model's worth that were measured; the first one speaks for it."""
        whole = (name for name in names_of("utility") if describe(name).whole)
        return [m for m in whole if any(self.get(stage, m) for stage in self.stages)]

    @property
    def utility(self) -> str | None:
        """The metric that says what the model is worth."""
        return next(iter(self.utilities), None)

    def floor_of(self, stage: str, metric: str) -> float:
        """Return what an attacker without the model reaches by a metric of extractions, or ``nan``.

        Of identification it is what the best of as many guesses finds as there are extractions.
        """
        floor = next(iter(known(metric).floors), "")
        return self.luck(stage) if floor == FLOOR else self.mean(stage, floor)

    @property
    def floor(self) -> Interval | None:
        """What the same network reaches when it is trained on the held-out images alone."""
        return (
            None if self.utility is None else self.get(STAGES[-1], f"{self.utility}_floor_scratch")
        )

    @cached_property
    def stolen(self) -> int:
        """How many images one attacker hid; 0 where that is not known."""
        originals = self._group.first.pictures.get("original")
        if originals is not None:
            return len(originals)
        written = self.mean("upload", "images_written")
        chance = self.chance
        told = 1 / chance if math.isnan(written) and chance > 0 else written
        return round(told) if math.isfinite(told) else 0

    def luck(self, stage: str) -> float:
        """Return the share of images that guessing finds, or ``nan``.

        It is the best of as many guesses as there are extractions, by one who knows what the key
        tells; in tables of earlier versions, which do not have it, of blind ones.
        """
        if self.get(stage, FLOOR) is not None:
            return self.mean(stage, FLOOR)
        return blind_guessing(*self._blind(stage)).expected if self._guessable else self.chance

    def most_luck(self, stage: str) -> float:
        """Return the share of images that such guessing exceeds in 2.5 % of cases, or ``nan``."""
        if self.get(stage, FLOOR_HIGH) is not None:
            return self.mean(stage, FLOOR_HIGH)
        return blind_guessing(*self._blind(stage)).high if self._guessable else math.nan

    def tries(self, stage: str) -> int:
        """Return how many extractions were tried at a stage, one at least."""
        return max(1, len(self.extractions(stage)))

    @property
    def _guessable(self) -> bool:
        return 0 < self.stolen <= MOST_IMAGES and 0 < self.chance <= 1

    def _blind(self, stage: str) -> tuple[int, float, int]:
        return self.stolen, self.chance, self.tries(stage)

    @property
    def chance(self) -> float:
        """Share of images that one blind guess identifies."""
        for stage in reversed(self.stages):
            found = self.get(stage, CHANCE)
            if found is not None:
                return found.mean
        return math.nan


@dataclass(frozen=True)
class Words:
    """How the stages of a group are called in sentences and tables.

    Args:
        group: centralized or federated, defended or not.
    """

    group: Group

    def stage(self, name: str) -> str:
        """Return a stage's name for people."""
        stage, _, hospital = name.partition(":")
        if self.group.federated:
            malicious = f"hospital {hospital}'s upload" if hospital else "malicious upload"
            named = {"upload": malicious, "aggregate": "average", "release": "released"}
        else:
            named = {"upload": "as trained", "release": "as released"}
        return named.get(stage, name)

    def extraction(self, name: str) -> str:
        """Return an extraction's name for people."""
        said = {RAW: "raw", CHOSEN: "chosen by the attacker", STRONGEST: "best"}
        if name in said:
            return said[name]
        return _RESTORED.get(name, name.replace("_", " "))


def number(value: float, digits: int = 3) -> str:
    """Return a number for people: counts with thousands separated, others rounded; no NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) >= 2):
        text = f"{value:,.0f}"
    elif value != 0 and abs(value) < 0.5 * 10**-digits:
        text = f"{value:.1e}"
    elif abs(value) >= 10:
        text = f"{value:.1f}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", "−")


def count_text(value: float) -> str:
    """Return a count for people, a mean of counts to one digit."""
    if math.isnan(value):
        return "–"
    rounded = round(value, 1)
    return f"{rounded:,.0f}" if rounded.is_integer() else f"{rounded:,.1f}"


def percent(share: float) -> str:
    """Return a share for people, small ones with two digits."""
    if not math.isfinite(share):
        return "–"
    text = f"{100 * share:.2g}" if 0 < share < 0.1 else f"{100 * share:.0f}"
    return f"{text}\u00a0%"


def range_text(interval: Interval, said: Callable[[float], str] = number) -> str:
    """Return the ends of an interval; empty where there is none, or it has no width."""
    if math.isnan(interval.low) or interval.low == interval.high:
        return ""
    between = " to " if interval.low < 0 else "–"
    return f"{said(interval.low)}{between}{said(interval.high)}"


def _hospital(stage: str) -> tuple[int, int]:
    name, _, hospital = stage.partition(":")
    place = STAGES.index(name) if name in STAGES else len(STAGES)
    return place, int(hospital) if hospital.isdigit() else 0
