"""What several scenarios say together, in plain sentences."""

import math
from collections.abc import Iterable, Sequence

from experiments.report.measured import Measurements, number, percent
from experiments.report.runs import IDENTIFIED, Group
from experiments.report.story import Story
from fl_sim.metrics.vocabulary import column_label
from fl_sim.words import STRONGEST


def compare_headline(groups: Sequence[Group]) -> str:
    """Return the title of a report on several scenarios."""
    attacks = {group.labels.get("attack") or group.fact("attack") for group in groups}
    defenses = {group.labels.get("defense") or group.fact("defense") for group in groups}
    parts = []
    for names, singular in ((attacks, "attack"), (defenses, "defence")):
        count = len({name for name in names if name != "none"})
        if count:
            parts.append(f"{_spelled(count)} {singular}{'' if count == 1 else 's'}")
    text = " against ".join(parts) or f"{_spelled(len(groups))} honest models"
    return f"{text}, compared".capitalize()


def compare_sentences(groups: Sequence[Group], measured: Sequence[Measurements]) -> list[str]:
    """Return what several scenarios say together."""
    runs = sum(len(group.runs) for group in groups)
    counted = f"{len(groups)} scenarios, {runs} run{'' if runs == 1 else 's'}; means over seeds."
    return [
        *_extremes(groups, measured),
        *_verdict(groups, measured),
        *_worth(measured),
        counted,
    ]


def _extremes(groups: Sequence[Group], measured: Sequence[Measurements]) -> list[str]:
    shares = [own.mean("release", IDENTIFIED, STRONGEST) for own in measured]
    leaks = [(v, group) for v, group in zip(shares, groups, strict=True) if not math.isnan(v)]
    if len(leaks) < 2:
        return []
    worst = max(leaks, key=lambda pair: pair[0])
    least = min(leaks, key=lambda pair: pair[0])
    luck = max(_numbers(own.luck("release") for own in measured), default=math.nan)
    return [
        f"Of the stolen images {percent(worst[0])} can be identified in what leaves at worst "
        f"({worst[1].label}), and {percent(least[0])} at least ({least[1].label}); guessing "
        f"reaches {percent(luck)}."
    ]


def _verdict(groups: Sequence[Group], measured: Sequence[Measurements]) -> list[str]:
    verdicts = [
        Story(group, own).leaks("release")
        for group, own in zip(groups, measured, strict=True)
        if group.attacked and group.defended
    ]
    if not verdicts:
        return []
    leaking = sum(verdict is True for verdict in verdicts)
    return [
        f"More images than guessing finds are identified in {leaking or 'none'} of "
        f"{len(verdicts)} attacked and defended scenario{'' if len(verdicts) == 1 else 's'}."
    ]


def _worth(measured: Sequence[Measurements]) -> list[str]:
    metrics = {own.utility for own in measured}
    metric = next(iter(metrics))
    if len(metrics) > 1 or metric is None:
        return []
    values = _numbers(own.mean("release", metric) for own in measured)
    if not values:
        return []
    floors = [own.floor.mean for own in measured if own.floor]
    scratch = f"; trained from scratch on held-out images {_span(floors)}" if floors else ""
    return [f"{column_label(metric)} of what leaves is {_span(values)}{scratch}."]


def _numbers(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _spelled(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)
