"""Charts of a report: what is where, what is said of it, and that names from files stay text."""

import math
import re
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

import experiments.report
from experiments.report.charts import LineChart, ParetoChart, Point, Series
from fl_sim.statistics import Interval

HOSTILE = "$x_1$ <b>&\"' \\frac \x1b[31m\u202e]]> " + "long" * 9000
Places = list[tuple[float, float]]


def _at(value: float, room: float = math.nan) -> Interval:
    return Interval(value, value - room, value + room, 3)


def _marks(svg: str, kind: str, tag: str = "use") -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    groups = [group for group in root.iter("g") if group.get("class") == kind]
    return [mark for group in groups for mark in group.iter(tag)]


def _places(marks: list[ElementTree.Element]) -> Places:
    return [(float(mark.attrib["x"]), float(mark.attrib["y"])) for mark in marks]


def _ends(svg: str, kind: str) -> list[list[float]]:
    paths = [mark for mark in _marks(svg, kind, "path") if "id" not in mark.attrib]
    return [[float(n) for n in re.findall(r"[\d.]+", mark.attrib["d"])] for mark in paths]


def _titles(marks: list[ElementTree.Element]) -> list[str]:
    return [str(mark.findtext("title")) for mark in marks]


CORNERS = ((0.1, 0.7), (0.9, 0.9), (0.9, 0.6), (0.1, 0.7))


def _pareto(name: str = "d") -> ParetoChart:
    points = [
        Point(n, f"{name}{n}", _at(x, 0.05), _at(y, 0.05))
        for n, (x, y) in enumerate(CORNERS, start=1)
    ]
    floors = [("guessing", 0.02)], [("scratch", 0.65)]
    return ParetoChart("t", "Identified", "AUC", points, *floors)


def _lines(first: str = "a") -> LineChart:
    series = [
        Series(first, [_at(0.2, 0.1), None, _at(0.4, 0.1)]),
        Series("b", [_at(0.2), _at(0.3), _at(0.4)]),
    ]
    return LineChart("t", [1, 2, 4], series, [("floor", 0.1)], (0.0, 1.0))


def test_a_pareto_plot_marks_what_no_other_beats() -> None:
    chart = _pareto()
    svg = chart.svg("c")
    best, beaten = _marks(svg, "point best"), _marks(svg, "point")
    assert [title[:2] for title in _titles(best)] == ["1:", "2:", "4:"]
    assert _titles(beaten) == ["3: d3: Identified 0.900, AUC 0.600"]
    assert [row[4] for row in chart.table[1]] == ["yes", "yes", "no", "yes"]
    assert "on the Pareto front: d1, d2, d4." in chart.description
    (left, low), (right, high), _ = _places(best)
    assert left < right and low > high and _places(beaten)[0][0] == right
    upright, across = _ends(svg, "floor")
    assert upright[0] == upright[2] < left
    assert _places(beaten)[0][1] > across[1] == across[3] > low


def test_a_pareto_plot_has_the_intervals_of_each_point() -> None:
    svg = _pareto().svg("c")
    ends = _ends(svg, "ends")
    assert len(ends) == 8
    (x, y), (right, top), _ = _places(_marks(svg, "point best"))
    side, height = (right - x) / 16, (y - top) / 4  # of 0.05
    assert ends[0] == pytest.approx([x - side, y, x + side, y], abs=0.02)
    assert ends[4] == pytest.approx([x, y + height, x, y - height], abs=0.02)


def test_the_numbers_of_points_stand_apart_and_tell_the_same() -> None:
    svg = _pareto().svg("c")
    numbers = _marks(svg, "number", "text")
    assert [mark.text for mark in numbers] == ["1", "2", "3", "4"]
    assert all(math.dist(a, b) > 8 for a, b in combinations(_places(numbers), 2))
    assert sorted(_titles(numbers)) == sorted(
        _titles(_marks(svg, "point") + _marks(svg, "point best"))
    )


def test_a_crowd_has_numbers_on_the_front_only() -> None:
    points = [Point(n, f"d{n}", _at(n / 99), _at(0.7 + 0.1 * (n in (3, 40)))) for n in range(60)]
    svg = ParetoChart("t", "Identified", "AUC", points).svg("c")
    assert [mark.text for mark in _marks(svg, "number", "text")] == ["0", "3"]
    assert len(_marks(svg, "point")) == 58 and len(_marks(svg, "point best")) == 2
    few = ParetoChart("t", "Identified", "AUC", points[:50]).svg("c")
    assert len(_marks(few, "number", "text")) == 50


def test_a_line_chart_keeps_gaps_and_names_apart() -> None:
    chart = _lines()
    svg = chart.svg("c")
    first, second = _marks(svg, "line s0"), _marks(svg, "line s1")
    assert _titles(first) == ["a, round 1: 0.200", "a, round 4: 0.400"]
    xs = [x for x, _ in _places(second)]
    assert xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.05)
    assert [x for x, _ in _places(first)] == [xs[0], xs[2]]
    assert len(_ends(svg, "band s0")) == 1 and not _ends(svg, "band s1")
    assert chart.table[1] == [["1", "0.200", "0.200"], ["2", "–", "0.300"], ["4", "0.400", "0.400"]]
    a, b = (_places(_marks(svg, f"name s{n}", "text"))[0] for n in (0, 1))
    assert b[1] - a[1] > 12 and a[0] == b[0] > xs[2]  # the first of equals on top
    assert "a from 0.200 to 0.400, b from 0.200 to 0.400. Floor: floor 0.100." in svg


def test_a_line_chart_takes_any_number_of_series() -> None:
    series = [Series(f"n{n}", [_at(n / 9), _at(n / 9)]) for n in range(9)]
    svg = LineChart("t", [1, 2], series).svg("c")
    marks = [mark for n in range(4) for mark in _marks(svg, f"line s{n}")]
    titles = {f"n{n}, round {r}: {n / 9:.3f}" for n in range(9) for r in (1, 2)}
    assert set(_titles(marks)) == titles and len(marks) == 18


def test_counts_have_an_axis_of_whole_numbers() -> None:
    series = [Series("a", [_at(2.0), _at(3.0)])]
    svg = LineChart("t", [1, 2], series, limits=(0.0, 4000.0)).svg("c")
    assert {"0", "1,000", "4,000"} <= {
        mark.text for mark in ElementTree.fromstring(svg).iter("text")
    }
    small = ElementTree.fromstring(LineChart("t", [1, 2], series, limits=(0.0, 3.0)).svg("c"))
    assert {"0", "1", "2", "3"} == {m.text for m in small.iter("text")} - {"Round", "a"}


def test_an_axis_from_the_data_keeps_within_its_bounds_and_is_numbered() -> None:
    series = [Series("a", [_at(12.2), _at(12.8)])]
    beyond = LineChart("t", [1, 2], series, bounds=(0.0, 100.0)).svg("c")
    ys = [y for _, y in _places(_marks(beyond, "line s0"))]
    assert ys[0] - ys[1] > 100  # 0.6 of an axis that is little longer
    assert {"12.2", "12.4", "12.6"} <= {m.text for m in ElementTree.fromstring(beyond).iter("text")}
    within = LineChart("t", [1, 2], series).svg("c")
    assert len({y for _, y in _places(_marks(within, "line s0"))}) == 1  # both at the end, 1


def test_names_from_files_are_text() -> None:
    for chart in (_lines(HOSTILE), _pareto(HOSTILE)):
        svg = chart.svg("c")
        root = ElementTree.fromstring(svg)
        tags = {"svg", "g", "defs", "path", "use", "text", "title"}
        assert {element.tag for element in root.iter()} == tags
        assert not [character for character in svg if not character.isprintable()]
        assert "$x_1$ &lt;b&gt;&amp;" in svg and "\\x1b[31m\\u202e" in svg
        assert "$x_1$ <b>&\"' \\frac \\x1b" in root.attrib["aria-label"]
    lines = ElementTree.fromstring(_lines(HOSTILE).svg("c"))
    shown = next(str(mark.text) for mark in lines.iter("text") if "$" in str(mark.text))
    assert shown.startswith("$x_1$ <b>&") and len(shown) <= 24


def test_a_drawing_has_no_look_of_its_own_and_loads_nothing() -> None:
    for chart in (_lines(), _pareto()):
        svg = chart.svg("c")
        for word in ("url(", "style", "#0", "http", "xlink", "clip", "DejaVu", "px", "<!"):
            assert word not in svg, word
        assert set(re.findall(r'href="#([^"]+)"', svg)) == set(re.findall(r'id="([^"]+)"', svg))


def test_a_drawing_depends_on_its_numbers_and_its_anchor_only() -> None:
    svg = _lines().svg("c")
    _pareto().svg("d")
    with matplotlib.rc_context({"axes.grid": False, "font.size": 30, "lines.marker": "x"}):
        assert _lines().svg("c") == svg
        assert matplotlib.rcParams["font.size"] == 30
    other = _lines().svg("d")
    assert other != svg
    assert re.sub(r'(id="|#)m\w+', "", other) == re.sub(r'(id="|#)m\w+', "", svg)


def test_every_class_has_a_look() -> None:
    style = (Path(experiments.report.__file__).parent / "templates" / "report.css").read_text()
    styled = set(re.findall(r"\.([a-z]\w*)", style))
    for chart in (_lines(), _pareto()):
        classes = set(" ".join(re.findall(r'class="([^"]+)"', chart.svg("c"))).split())
        assert classes and classes <= styled


@pytest.fixture
def strict() -> Iterator[None]:
    """Take warnings for errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


ODD = (-1.0, 0.0, 1e-320, 0.5, 2.0, 1e308, -1e308, math.inf, -math.inf)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("room", [0.0, 1e-320, 0.1, 1e308, math.inf, math.nan])
def test_odd_numbers_stay_on_the_canvas(value: float, room: float) -> None:
    one = Interval(value, value - room, value + room, 2)
    floors = [("a", value), ("b", 0.3)]
    drawings = [ParetoChart("t", "a", "b", [Point(1, "x", one, one)] * 2, floors, floors).svg("c")]
    for limits in (None, (0.0, 1.0), (0.0, 1e9)):
        drawings.append(LineChart("t", [1, 2], [Series("a", [one, one])], floors, limits).svg("c"))
    for bounds in ((0.0, math.inf), (-math.inf, math.inf)):
        series = [Series("a", [one, one])]
        drawings.append(LineChart("t", [1, 2], series, floors, bounds=bounds).svg("c"))
    for svg in drawings:
        root = ElementTree.fromstring(svg)
        drawn = "".join(mark.get(key, "") for mark in root.iter() for key in ("d", "x", "y"))
        assert re.fullmatch(r"[MLCz\d. -]+", drawn)
        width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
        for x, y in _places([*root.iter("use"), *root.iter("text")]):
            assert 0 <= x <= width and 0 <= y <= height
