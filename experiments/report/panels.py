"""Which charts a report shows, and what goes into them."""

import math
from collections.abc import Mapping, Sequence

from experiments.report.cells import is_share
from experiments.report.charts import LineChart, ParetoChart, Point, Series
from experiments.report.measured import Measurements, Words
from experiments.report.runs import IDENTIFIED, Group
from experiments.report.words import plain
from fl_sim.metrics.vocabulary import column_label, known
from fl_sim.words import NO_EXTRACTION, STRONGEST

Member = tuple[Group, Measurements]
_Ends = tuple[float, float]
_SHARE = (0.0, 1.0)
_MOST = 1e9  # images, more than anybody hides: tables from elsewhere may say anything


def round_charts(group: Group, measured: Measurements, words: Words) -> list[LineChart]:
    """Return how leak and utility went from round to round; nothing for fewer than two."""
    rounds = [r for r in measured.rounds if r > 0]
    if len(rounds) < 2:
        return []
    last, utility, scratch = measured.stages[-1], measured.utility or "", measured.floor
    worth = {"from scratch": scratch.mean} if scratch else {}
    panels: list[tuple[str, str, str, dict[str, float], _Ends | None, _Ends]] = []
    for leak in measured.main_leaks:
        floor = {_floor_mark(leak): measured.floor_of(last, leak)}
        limits, bounds = (_SHARE, _SHARE) if is_share(leak) else (None, known(leak).range)
        panels.append((_leak_title(leak), leak, STRONGEST, floor, limits, bounds))
    most = (0.0, _most(measured))
    panels += [
        (f"Utility ({column_label(utility)})", utility, NO_EXTRACTION, worth, None, _SHARE),
        ("Images intact, bit for bit", "images_intact", NO_EXTRACTION, {}, most, most),
        (
            "Wrong bits (share)",
            "bit_error_rate",
            NO_EXTRACTION,
            {"chance": 0.5},
            (0.0, 0.6),
            _SHARE,
        ),
    ]
    found = []
    for title, metric, extraction, floors, limits, bounds in panels:
        lines = [
            Series(words.stage(s), [measured.get(s, metric, extraction, r) for r in rounds])
            for s in measured.stages
        ]
        if lines := [line for line in lines if any(line.values)]:
            found.append(LineChart(title, rounds, lines, _measured(floors), limits, bounds))
    return found


def _leak_title(metric: str) -> str:
    """Return what stands above a chart of a metric of extractions."""
    if metric == IDENTIFIED:
        return "Images identified (share)"
    return column_label(f"{metric} {STRONGEST}").replace(",", "")


def _floor_mark(metric: str) -> str:
    """Return what the floor of a metric of extractions is called beside its line."""
    floor = known(next(iter(known(metric).floors), ""))
    return floor.mark or floor.title


def trade_offs(groups: Sequence[Group], measured: Sequence[Measurements]) -> list[ParetoChart]:
    """Return privacy-utility plots, one a leak and set of scenarios that differ in the defence."""
    families: dict[tuple[str, ...], list[Member]] = {}
    for group, numbers in zip(groups, measured, strict=True):
        if group.attacked and numbers.utility:
            shared = (
                text
                for axis, text in group.labels.items()
                if axis not in ("defense", "settings") and not axis.startswith("defense.")
            )
            facts = (group.fact("attack"), group.fact("dataset"), group.fact("mode"))
            families.setdefault((*facts, *shared, numbers.utility), []).append((group, numbers))
    return [
        chart
        for members in families.values()
        for metric in dict.fromkeys(leak for _, numbers in members for leak in numbers.main_leaks)
        if is_share(metric) and (chart := _trade_off(members, metric))
    ]


def _trade_off(members: Sequence[Member], metric: str) -> ParetoChart | None:
    name = column_label(metric) if metric == IDENTIFIED else _leak_title(metric)
    utility = str(members[0][1].utility)
    differing = _differing([group for group, _ in members])
    points: list[Point] = []
    leak_floors, utility_floors = {}, {}
    for group, numbers in members:
        leak, worth = numbers.get("release", metric, STRONGEST), numbers.get("release", utility)
        if leak is None or worth is None or math.isnan(leak.mean + worth.mean):
            continue
        said = ", ".join(text for axis in differing if (text := group.said(axis)))
        points.append(Point(group.number, said or plain(group.fact("defense")), leak, worth))
        leak_floors[_floor_mark(metric)] = numbers.floor_of("release", metric)
        if numbers.floor:
            utility_floors["from scratch"] = numbers.floor.mean
    if len(points) < 2:
        return None
    first = members[0][0]
    same = ", ".join(first.said(axis) for axis in first.labels if axis not in differing)
    return ParetoChart(
        f"{same or plain(first.fact('attack'))}: {name.lower() if metric == IDENTIFIED else name}",
        name,
        column_label(utility),
        points,
        _measured(leak_floors),
        _measured(utility_floors),
        known(metric).lower_leaks,
    )


def _differing(family: Sequence[Group]) -> list[str]:
    """Return the axes that tell the groups of a chart apart."""
    return [
        axis for axis in family[0].labels if len({member.labels[axis] for member in family}) > 1
    ]


def _measured(floors: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in floors.items() if not math.isnan(value)]


def _most(measured: Measurements) -> float:
    """Return how many images an axis of counts leads to: those that were hidden, or found."""
    found = [
        count.mean
        for stage in measured.stages
        for r in measured.rounds
        if (count := measured.get(stage, "images_intact", server_round=r))
    ]
    return max(1.0, measured.stolen, *(min(c, _MOST) for c in found if math.isfinite(c)))
