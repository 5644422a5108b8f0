"""The charts of a report: metrics round by round, and privacy against utility."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from experiments.report.measured import number
from experiments.report.svg import WIDTH, Hints, drawn, write
from fl_sim.statistics import Interval, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT = WIDTH - 14.0
_LETTER = 6.2  # width of a letter in bold, about
_MARKERS = "osD^"
_MARK = 6.5
_APART = 13.0
_CROWD = 50
"""Points of which each has its number beside it; of more, those on the front."""
_FAR = 1e9  # the farthest end of an axis: tables from elsewhere may say anything
_RADII = (11, 17, 24, 32)
_ANGLES = tuple(math.pi * k / 6 for k in (1, -1, 3, -3, 5, -5, 0, 6, 2, -2, 4, -4))

Table = tuple[list[str], list[list[str]]]
"""Header and rows of text: the numbers of a chart."""


@dataclass(frozen=True)
class Series:
    """Values of a line chart: a name and an interval a round, ``None`` where not measured."""

    name: str
    values: Sequence[Interval | None]


@dataclass(frozen=True)
class LineChart:
    """Metrics against rounds.

    Args:
        title: of the panel.
        rounds: horizontal axis.
        series: of the same length each.
        floors: name and value of lines across.
        limits: of the vertical axis; from the data where not given.
        bounds: that a vertical axis from the data keeps within; infinite for none.
    """

    title: str
    rounds: Sequence[int]
    series: Sequence[Series]
    floors: Sequence[tuple[str, float]] = ()
    limits: tuple[float, float] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    legend: Sequence[tuple[str, str]] = ()

    @property
    def description(self) -> str:
        """What it shows, in words, for those who do not see it."""
        ends = ", ".join(
            f"{one.name} from {number(there[0][1].mean)} to {number(there[-1][1].mean)}"
            for one in self.series
            if (there := self._there(one))
        )
        floors = ", ".join(f"{name} {number(value)}" for name, value in self.floors)
        said = f"{self.title} by round, {self.rounds[0]} to {self.rounds[-1]}: {ends}."
        return f"{said} Floor: {floors}." if floors else said

    @property
    def table(self) -> Table:
        """The same numbers, a row a round."""
        rows = [
            [str(r), *(number(v.mean) if (v := s.values[n]) else "–" for s in self.series)]
            for n, r in enumerate(self.rounds)
        ]
        return ["Round", *(s.name for s in self.series)], rows

    def svg(self, anchor: str) -> Markup:
        """Draw it, with ``anchor`` as its name on the page."""
        longest = max(len(name) for name in (*(s.name for s in self.series), *dict(self.floors)))
        right = max(WIDTH / 2, _RIGHT - 8 - _LETTER * longest)
        return drawn(self._paint, 250, right, anchor, self.description)

    def _there(self, one: Series) -> list[tuple[int, Interval]]:
        pairs = zip(self.rounds, one.values, strict=True)
        return [(r, i) for r, i in pairs if i is not None and math.isfinite(i.mean)]

    def _paint(self, axes: "Axes") -> Hints:
        from matplotlib.ticker import MaxNLocator

        known = [v for s in self.series for _, i in self._there(s) for v in (i.mean, i.low, i.high)]
        low, high = self.limits or _limits([*known, *(v for _, v in self.floors)], self.bounds)
        axes.set(xlabel="Round", ylim=(low, high))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        _tick_values(axes)
        hints: dict[str, list[str]] = {}
        names = []
        for style, one in enumerate(self.series):
            if there := self._there(one):
                kind = f"s{style % len(_MARKERS)}"
                self._paint_series(axes, there, kind)
                said = [f"{one.name}, round {r}: {number(i.mean)}" for r, i in there]
                hints.setdefault(f"line {kind}", []).extend(said)
                names.append((one.name, f"name {kind}", there[-1][1].mean))
        for name, value in self.floors:
            if low <= value <= high:
                axes.axhline(value, gid="floor", zorder=1)
                names.append((name, "floor", value))
        _write_beside(axes, names)
        return hints

    @staticmethod
    def _paint_series(axes: "Axes", there: Sequence[tuple[int, Interval]], kind: str) -> None:
        low, high = axes.get_ylim()
        ends = [(r, i) for r, i in there if math.isfinite(i.low)]
        if ends:
            rounds = [r for r, _ in ends]
            band = [i.high for _, i in ends] + [i.low for _, i in reversed(ends)]
            axes.fill([*rounds, *reversed(rounds)], np.clip(band, low, high), gid=f"band {kind}")
        marker = _MARKERS[int(kind[1:])]
        means = np.clip([i.mean for _, i in there], low, high)
        axes.plot([r for r, _ in there], means, marker, ls="-", ms=_MARK, gid=f"line {kind}")


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


@dataclass(frozen=True)
class ParetoChart:
    """What defences leave of the leak against what they leave of the model.

    Args:
        title: of the panel.
        leakage, utility: names of the axes; both lie in [0, 1].
        points: the defences.
        leak_floors, utility_floors: names and values of lines upright and across.
        lower_leaks: whether lower values leak more; the axis then runs from right to left, so that
            the left protects more in every plot.
    """

    title: str
    leakage: str
    utility: str
    points: Sequence[Point]
    leak_floors: Sequence[tuple[str, float]] = ()
    utility_floors: Sequence[tuple[str, float]] = ()
    lower_leaks: bool = False

    @cached_property
    def front(self) -> NDArray[np.bool_]:
        """Of each point, whether no other one beats it."""
        sign = -1.0 if self.lower_leaks else 1.0
        leaks = [sign * p.leakage.mean for p in self.points]
        return pareto_front(leaks, [p.utility.mean for p in self.points])

    @property
    def _numbered(self) -> NDArray[np.bool_]:
        """Of each point, whether its number stands beside it."""
        return self.front | (len(self.points) <= _CROWD)

    @property
    def description(self) -> str:
        """What it shows, in words, for those who do not see it."""
        best = ", ".join(p.name for p, on in zip(self.points, self.front, strict=True) if on)
        return (
            f"{self.utility} against {self.leakage.lower()}, {len(self.points)} defences; on the "
            f"Pareto front: {best}."
        )

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Number and name of each point."""
        return [(str(p.number), p.name) for p in self.points]

    @property
    def table(self) -> Table:
        """The same numbers, a row a point."""
        rows = [
            [*named, number(p.leakage.mean), number(p.utility.mean), "yes" if on else "no"]
            for named, p, on in zip(self.legend, self.points, self.front, strict=True)
        ]
        return ["No.", "Defence", self.leakage, self.utility, "On the front"], rows

    def svg(self, anchor: str) -> Markup:
        """Draw it, with ``anchor`` as its name on the page."""
        return drawn(self._paint, 320, _RIGHT, anchor, self.description)

    def _paint(self, axes: "Axes") -> Hints:
        worth = [v for p in self.points for v in (p.utility.mean, p.utility.low, p.utility.high)]
        low, high = _limits([*worth, *(value for _, value in self.utility_floors)])
        better, ends = ("higher", (1.03, -0.03)) if self.lower_leaks else ("lower", (-0.03, 1.03))
        axes.set(xlabel=f"{self.leakage} ({better} protects more)", xlim=ends)
        axes.set(xticks=np.linspace(0, 1, 6), ylim=(low, high))
        _tick_values(axes)
        x, left, right = _ends([p.leakage for p in self.points], 0, 1)
        y, below, above = _ends([p.utility for p in self.points], low, high)
        axes.hlines(y, left, right, gid="ends")
        axes.vlines(x, below, above, gid="ends")
        steps = sorted(zip(x[self.front], y[self.front], strict=True))
        axes.plot(*zip(*steps, strict=True), gid="front")
        titles = np.array([self._title(point) for point in self.points], dtype=object)
        hints = {"number": list(titles[self._numbered])}
        for name, shown in (("point", ~self.front), ("point best", self.front)):
            axes.plot(x[shown], y[shown], "o", ms=8, gid=name)
            hints[name] = list(titles[shown])
        self._write_texts(axes, axes.transData.transform(np.stack([x, y], axis=1)))
        return hints

    def _title(self, point: Point) -> str:
        leak, worth = number(point.leakage.mean), number(point.utility.mean)
        return f"{point.number}: {point.name}: {self.leakage} {leak}, {self.utility} {worth}"

    def _write_texts(self, axes: "Axes", points: NDArray[np.float64]) -> None:
        """Draw floors and write their names, the number of each point, and the upright axis's."""
        (left, bottom), (right, top) = axes.bbox.get_points()
        write(axes, self.utility, (left - 32, top + 10))
        numbers = np.array([str(point.number) for point in self.points])[self._numbered]
        places = _free(points[self._numbered], points, axes.bbox.get_points())
        for said, at in zip(numbers, places, strict=True):
            write(axes, said, at, "number", "center")
        for name, value in self.leak_floors:
            if 0 <= value <= 1:
                axes.axvline(value, gid="floor", zorder=1)
                x = axes.transData.transform((value, 0))[0]
                write(axes, name, (x + 4, bottom + 3), "floor", up="bottom")
        low, high = axes.get_ylim()
        for name, value in self.utility_floors:
            if low <= value <= high:
                axes.axhline(value, gid="floor", zorder=1)
                y = axes.transData.transform((0, value))[1]
                crowd = (abs(points[:, 1] - y) < 20) & (points[:, 0] > right - 100)
                across, x = ("left", left + 4) if crowd.any() else ("right", right - 2)
                write(axes, name, (x, y + 3), "floor", across, "bottom")


def _limits(
    values: Sequence[float], bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Return the ends of an axis around values, within bounds."""
    least, most = (min(max(bound, -_FAR), _FAR) for bound in bounds)
    known = np.clip([value for value in values if math.isfinite(value)] or [0, 1], least, most)
    low, high = float(known.min()), float(known.max())
    room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return max(least, low - room), min(most, high + room)


def _ends(
    intervals: Sequence[Interval], low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return means and ends of intervals within an axis; an end that is not known is the mean."""
    values = np.array([(i.mean, i.low, i.high) for i in intervals])
    values = np.where(np.isnan(values), values[:, :1], values)
    mean, below, above = np.clip(values, low, high).T
    return mean, below, above


def _tick_values(axes: "Axes") -> None:
    """Number the upright axis, in whole numbers where it leads beyond 1 and has two at least."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    low, high = axes.get_ylim()
    if counts := high > 1 and math.floor(high) > math.ceil(low):
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=counts))


def _write_beside(axes: "Axes", names: Sequence[tuple[str, str, float]]) -> None:
    """Write names at the ends of their lines, at the right, apart so that each can be read."""
    low, high = axes.get_ylim()
    order = sorted(reversed(names), key=lambda named: named[2])  # the first of equals on top
    values = [(0.0, min(max(value, low), high)) for *_, value in order]
    places = axes.transData.transform(values)[:, 1]
    for _ in range(20):
        for n in range(len(places) - 1):
            closer = max(0.0, _APART - (places[n + 1] - places[n])) / 2
            places[n : n + 2] += (-closer, closer)
    for (name, gid, _), place in zip(order, places, strict=True):
        write(axes, name, (axes.bbox.x1 + 8, place), gid)


def _free(
    labelled: NDArray[np.float64], points: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a place for the label of each point, as far from everything else as there is.

    Args:
        labelled: ``[m, 2]``, those of the points that have a label.
        points: ``[n, 2]``, in points of the canvas.
        box: ``[2, 2]``, corners of the axes.
    """
    around = np.array([(math.cos(angle), math.sin(angle)) for angle in _ANGLES])
    steps = np.concatenate([radius * around for radius in _RADII])
    taken = points
    for at in labelled:
        places = at + steps
        others = taken[(taken != at).any(axis=1)]
        nearest = np.hypot(*(places[:, None] - others).T).min(axis=0, initial=14.0)
        outside = ((places < box[0] + 7) | (places > box[1] - 7)).any(axis=1)
        room = nearest - np.hypot(*steps.T) / 8 - 100 * outside
        taken = np.concatenate([taken, places[[room.argmax()]]])
    return taken[len(points) :]
