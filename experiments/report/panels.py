"""Which charts a report shows, and what goes into them."""

import math
from collections.abc import Mapping, Sequence

from experiments.report.charts import LineChart, ParetoChart, Point, Series
from experiments.report.measured import Measurements, Words, metric_name
from experiments.report.runs import IDENTIFIED, Group
from experiments.report.words import plain
from fl_sim.metrics.measure import STRONGEST

Member = tuple[Group, Measurements]
_MOST = 1e9  # images, more than anybody hides: tables from elsewhere may say anything


def round_charts(group: Group, measured: Measurements, words: Words) -> list[LineChart]:
    """Return how leak and utility went from round to round; nothing for fewer than two."""
    rounds = [r for r in measured.rounds if r > 0]
    if len(rounds) < 2:
        return []
    last, utility, scratch = measured.stages[-1], measured.utility or "", measured.floor
    guessing = {"guessing": measured.luck(last)}
    mean_image = {"mean image": measured.mean(last, "ssim_floor_mean")}
    worth = {"from scratch": scratch.mean} if scratch else {}
    panels: list[tuple[str, str, str, dict[str, float], tuple[float, float] | None]] = [
        ("Images identified (share)", IDENTIFIED, STRONGEST, guessing, (0.0, 1.0)),
        ("SSIM at best", "ssim", STRONGEST, mean_image, (0.0, 1.0)),
        (f"Utility ({metric_name(utility)})", utility, "-", worth, None),
        ("Images intact, bit for bit", "images_intact", "-", {}, (0.0, _most(measured))),
        ("Wrong bits (share)", "bit_error_rate", "-", {"chance": 0.5}, (0.0, 0.6)),
    ]
    found = []
    for title, metric, extraction, floors, limits in panels:
        lines = [
            Series(words.stage(s), [measured.get(s, metric, extraction, r) for r in rounds])
            for s in measured.stages
        ]
        if lines := [line for line in lines if any(line.values)]:
            found.append(LineChart(title, rounds, lines, _known(floors), limits))
    return found


def trade_offs(groups: Sequence[Group], measured: Sequence[Measurements]) -> list[ParetoChart]:
    """Return privacy-utility plots, two for each set of scenarios that differ in the defence."""
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
        for metric, name in ((IDENTIFIED, "Identified"), ("ssim", "SSIM at best"))
        if (chart := _trade_off(members, metric, name))
    ]


def _trade_off(members: Sequence[Member], metric: str, name: str) -> ParetoChart | None:
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
        if metric == IDENTIFIED:
            leak_floors["guessing"] = numbers.luck("release")
        else:
            leak_floors["mean image"] = numbers.mean("release", "ssim_floor_mean")
        if numbers.floor:
            utility_floors["from scratch"] = numbers.floor.mean
    if len(points) < 2:
        return None
    first = members[0][0]
    same = ", ".join(first.said(axis) for axis in first.labels if axis not in differing)
    return ParetoChart(
        f"{same or plain(first.fact('attack'))}: {'identified' if metric == IDENTIFIED else name}",
        name,
        metric_name(utility),
        points,
        _known(leak_floors),
        _known(utility_floors),
    )


def _differing(family: Sequence[Group]) -> list[str]:
    """Return the axes that tell the groups of a chart apart."""
    return [
        axis for axis in family[0].labels if len({member.labels[axis] for member in family}) > 1
    ]


def _known(floors: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in floors.items() if not math.isnan(value)]


def _most(measured: Measurements) -> float:
    """Return how many images an axis of counts leads to: those that were hidden, or found."""
    found = [
        count.mean
        for stage in measured.stages
        for r in measured.rounds
        if (count := measured.get(stage, "images_intact", "-", r))
    ]
    return max(1.0, measured.stolen, *(min(c, _MOST) for c in found if math.isfinite(c)))
