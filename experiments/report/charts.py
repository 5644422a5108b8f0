"""Charts as geometry: what a template draws as inline SVG, in the page's own colours and text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from experiments.report.measured import number
from fl_sim.statistics import Interval, pareto_front

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 24, 40
MARKS = ("circle", "square", "diamond", "triangle")
_APART = 13.0


@dataclass(frozen=True)
class Tick:
    """A tick: where, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a line, or of a scatter plot.

    Args:
        x, y: on the canvas.
        title: its numbers.
        label: text beside it, at ``label_x``, ``label_y``.
        low, high, left, right: ends of its intervals on the canvas, where it has them.
        front: whether no other point beats it.
    """

    x: float
    y: float
    title: str
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    front: bool = False


@dataclass(frozen=True)
class Line:
    """A series.

    Args:
        name: of the series.
        style: number, which picks colour and marker.
        points: for ``<polyline>``.
        band: for ``<polygon>``, the interval around it; empty where there is none.
        marks: its points.
        label_y: where its name stands, at the right.
    """

    name: str
    style: int
    points: str
    band: str
    marks: list[Mark]
    label_y: float


@dataclass(frozen=True)
class Floor:
    """A floor: a dashed line across, at ``at`` of the axis, with its name at the left or right."""

    at: float
    text: str
    left: bool = True


@dataclass(frozen=True)
class Chart:
    """One panel.

    Args:
        title: above it, also its accessible name.
        description: what it shows, in words, for those who do not see it.
        x_label, y_label: of the axes.
        x_ticks, y_ticks: of the axes.
        lines: series; empty in a scatter plot.
        marks: points of a scatter plot.
        front: for ``<polyline>``, through the points that no other beats.
        rows, columns: floors across and upright.
        table: header and rows of text; the same numbers.
        legend: number and name, of a scatter plot.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    right: float
    table: tuple[list[str], list[list[str]]]
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    front: str = ""
    rows: list[Floor] = field(default_factory=list)
    columns: list[Floor] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Series:
    """Values of a line chart: a name and an interval a round, ``None`` where not measured."""

    name: str
    values: Sequence[Interval | None]


@dataclass(frozen=True)
class Point:
    """A point of a privacy-utility plot.

    Args:
        number: by which text and tables refer to it.
        name: of the defence.
        leakage, utility: means with intervals.
    """

    number: int
    name: str
    leakage: Interval
    utility: Interval


def line_chart(
    title: str,
    rounds: Sequence[int],
    series: Sequence[Series],
    floors: Sequence[tuple[str, float]],
    y_limits: tuple[float, float] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Chart:
    """Draw metrics against rounds.

    Args:
        title: of the panel.
        rounds: horizontal axis.
        series: of the same length each.
        floors: name and value of lines across.
        y_limits: of the vertical axis; from the data where not given.
        bounds: that the vertical axis keeps within.
    """
    right = WIDTH - RIGHT - max((6.0 * len(s.name) for s in series), default=0.0) - 8
    known = [v for s in series for i in s.values if i for v in (i.mean, i.low, i.high)]
    known += [value for _, value in floors]
    y_low, y_high, y_values = _axis([v for v in known if math.isfinite(v)], y_limits, bounds)
    span = max(1, rounds[-1] - rounds[0])

    def x(server_round: int) -> float:
        return LEFT + 6 + (right - LEFT - 12) * (server_round - rounds[0]) / span

    def y(value: float) -> float:
        return _y(value, y_low, y_high)

    lines = []
    for style, one in enumerate(series):
        there = [
            (server_round, interval)
            for server_round, interval in zip(rounds, one.values, strict=True)
            if interval is not None and math.isfinite(interval.mean)
        ]
        if not there:
            continue
        marks = [
            Mark(x(r), y(i.mean), f"{one.name}, round {r}: {number(i.mean)}") for r, i in there
        ]
        ends = [(r, i) for r, i in there if math.isfinite(i.low)]
        band = [f"{x(r):.1f},{y(i.high):.1f}" for r, i in ends]
        band += [f"{x(r):.1f},{y(i.low):.1f}" for r, i in reversed(ends)]
        points = " ".join(f"{m.x:.1f},{m.y:.1f}" for m in marks)
        lines.append(Line(one.name, style, points, " ".join(band), marks, marks[-1].y))
    lines = _spread(lines)
    header = ["Round", *(s.name for s in series)]
    rows = [
        [str(r), *(number(v.mean) if (v := s.values[n]) else "–" for s in series)]
        for n, r in enumerate(rounds)
    ]
    first_and_last = ", ".join(
        f"{line.name} from {line.marks[0].title.rpartition(': ')[2]} "
        f"to {line.marks[-1].title.rpartition(': ')[2]}"
        for line in lines
    )
    above = ", ".join(f"{name} {number(value)}" for name, value in floors)
    return Chart(
        title=title,
        description=f"{title} by round, {rounds[0]} to {rounds[-1]}: {first_and_last}."
        + (f" Floor: {above}." if above else ""),
        x_label="Round",
        y_label="",
        x_ticks=[Tick(x(r), str(r)) for r in _few(rounds)],
        y_ticks=[Tick(y(v), _tick(v, y_values)) for v in y_values],
        right=right,
        table=(header, rows),
        lines=lines,
        rows=[Floor(y(v), name) for name, v in floors if y_low <= v <= y_high],
    )


def pareto_chart(
    title: str,
    leakage: str,
    utility: str,
    points: Sequence[Point],
    leak_floors: Sequence[tuple[str, float]],
    utility_floors: Sequence[tuple[str, float]],
    lower_leaks: bool = False,
) -> Chart:
    """Draw what defences leave of the leak against what they leave of the model.

    Args:
        title: of the panel.
        leakage, utility: names of the axes; leakage lies in [0, 1].
        points: the defences.
        leak_floors, utility_floors: names and values of lines upright and across.
        lower_leaks: whether lower values leak more; the axis then runs from right to left, so that
            the left protects more in every plot.
    """
    height, right = 320, float(WIDTH - RIGHT)
    bottom = height - BOTTOM
    known = [v for p in points for v in (p.utility.mean, p.utility.low, p.utility.high)]
    known += [value for _, value in utility_floors]
    y_low, y_high, y_values = _axis([v for v in known if math.isfinite(v)], None)

    def x(value: float) -> float:
        place = min(max(value, 0.0), 1.0)
        return LEFT + (right - LEFT) * ((1.0 - place if lower_leaks else place) + 0.03) / 1.06

    def y(value: float) -> float:
        value = min(max(value, y_low), y_high)
        return bottom - (bottom - TOP) * (value - y_low) / (y_high - y_low)

    sign = -1.0 if lower_leaks else 1.0
    front = pareto_front([sign * p.leakage.mean for p in points], [p.utility.mean for p in points])
    taken: list[tuple[float, float]] = [(x(p.leakage.mean), y(p.utility.mean)) for p in points]
    marks = []
    for point, best in zip(points, front, strict=True):
        at = (x(point.leakage.mean), y(point.utility.mean))
        label = _free(at, taken, (LEFT + 8, right - 8), (TOP + 6, bottom - 6))
        taken.append(label)
        said = f"{leakage} {number(point.leakage.mean)}, {utility} {number(point.utility.mean)}"
        marks.append(
            Mark(
                *at, f"{point.number}: {point.name}: {said}", str(point.number), *label,
                low=_if(point.utility.low, y), high=_if(point.utility.high, y),
                left=_if(point.leakage.low, x), right=_if(point.leakage.high, x),
                front=bool(best),
            )
        )  # fmt: skip
    steps = sorted((m.x, m.y) for m in marks if m.front)
    on_front = ", ".join(p.name for p, best in zip(points, front, strict=True) if best)
    rows = [
        [
            str(p.number),
            p.name,
            number(p.leakage.mean),
            number(p.utility.mean),
            "yes" if b else "no",
        ]
        for p, b in zip(points, front, strict=True)
    ]
    return Chart(
        title=title,
        description=f"{utility} against {leakage.lower()}, {len(points)} defences; on the Pareto "
        f"front: {on_front}.",
        x_label=f"{leakage} ({'higher' if lower_leaks else 'lower'} protects more)",
        y_label=utility,
        x_ticks=[Tick(x(v), number(v, 1)) for v in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)],
        y_ticks=[Tick(y(v), _tick(v, y_values)) for v in y_values],
        right=right,
        table=(["No.", "Defence", leakage, utility, "On the front"], rows),
        marks=marks,
        front=" ".join(f"{a:.1f},{b:.1f}" for a, b in steps) if len(steps) > 1 else "",
        rows=[
            Floor(y(v), name, _crowded(marks, y(v), right))
            for name, v in utility_floors
            if y_low <= v <= y_high
        ],
        columns=[Floor(x(v), name) for name, v in leak_floors if 0 <= v <= 1],
        legend=[(str(p.number), p.name) for p in points],
        height=height,
        bottom=bottom,
    )


def _crowded(marks: Sequence[Mark], at: float, right: float) -> bool:
    """Tell whether points stand where the name of a floor would, at the right end of its line."""
    return any(abs(mark.y - at) < 20 and mark.x > right - 100 for mark in marks)


def _axis(
    values: Sequence[float],
    limits: tuple[float, float] | None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float, list[float]]:
    """Return the ends of an axis around values, within bounds, and where its ticks stand."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits or (min(values, default=0.0), max(values, default=1.0))
    if limits is None:
        room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
        low, high = max(bounds[0], low - room), min(bounds[1], high + room)
    ticks = [
        float(t) for t in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ]
    return low, high, [t for t in ticks if low - 1e-9 <= t <= high + 1e-9]


def _tick(value: float, ticks: Sequence[float]) -> str:
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    # A step of 0.25 or 0.025 has a digit more than its size says.
    digits += round(step, digits) != round(step, 10)
    return f"{value:,.{digits}f}".replace("-", "−")


def _y(value: float, low: float, high: float) -> float:
    value = min(max(value, low), high)
    return (HEIGHT - BOTTOM) - (HEIGHT - BOTTOM - TOP) * (value - low) / ((high - low) or 1.0)


def _if(value: float, scale: "object") -> float | None:
    return float(scale(value)) if math.isfinite(value) else None  # type: ignore[operator]


def _few(rounds: Sequence[int]) -> list[int]:
    """Return at most eight of the rounds, the first and the last among them."""
    step = -(-(len(rounds) - 1) // 7) or 1
    chosen = list(rounds[::-1][::step])[::-1]
    return chosen if chosen[0] == rounds[0] or len(rounds) < 2 else [rounds[0], *chosen[1:]]


def _spread(lines: list[Line]) -> list[Line]:
    """Move the names at the ends of lines apart, so that each can be read."""
    order = sorted(lines, key=lambda line: line.label_y)
    places = [line.label_y for line in order]
    for _ in range(20):
        for n in range(len(places) - 1):
            gap = places[n + 1] - places[n]
            if gap < _APART:
                places[n] -= (_APART - gap) / 2
                places[n + 1] += (_APART - gap) / 2
    moved = {line.name: place for line, place in zip(order, places, strict=True)}
    return [Line(li.name, li.style, li.points, li.band, li.marks, moved[li.name]) for li in lines]


def _free(
    at: tuple[float, float],
    taken: Sequence[tuple[float, float]],
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
) -> tuple[float, float]:
    """Return the place near a point that is farthest from everything else drawn."""

    def room(place: tuple[float, float]) -> float:
        others = [t for t in taken if t != at] or [(-1e3, -1e3)]
        nearest = min(math.dist(place, other) for other in others)
        inside = x_limits[0] <= place[0] <= x_limits[1] and y_limits[0] <= place[1] <= y_limits[1]
        return min(nearest, 14.0) - math.dist(place, at) / 8 - (0 if inside else 100)

    candidates = [
        (at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle))
        for radius in (11, 17, 24, 32)
        for angle in [math.pi * k / 6 for k in (-1, 1, -3, 3, -5, 5, 0, 6, -2, 2, -4, 4)]
    ]
    return max(candidates, key=room)
