"""What matplotlib draws, as SVG within a page: in the page's own colours and text.

An artist's ``gid`` becomes the class of what it draws, and the only look it has: the style sheet of
the page gives it one, in light, in dark and on paper.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from fl_sim.errors import legible, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 360
LEFT, TOP, BOTTOM = 44, 24, 40
_LONGEST = 24
_POINTS = 72  # an inch, so that a point of matplotlib is a unit of the canvas

Hints = Mapping[str, Sequence[str]]
"""Titles, which browsers show as hints, of the marks and texts of a class, as they were drawn."""


def drawn(
    paint: Callable[["Axes"], Hints], height: int, right: float, anchor: str, description: str
) -> Markup:
    """Return a panel as an ``<svg>`` element.

    Args:
        paint: draws on axes whose canvas is in points, and returns hints.
        height: of the canvas, which is :data:`WIDTH` wide.
        right: where the axes end on it.
        anchor: unique on the page; definitions are named after it.
        description: what it shows, in words.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    own = {"font.size": 11, "svg.fonttype": "none", "text.parse_math": False}
    with style.context(["default", own | {"svg.hashsalt": anchor}]):
        size = (WIDTH / _POINTS, height / _POINTS)
        figure = Figure(figsize=size, dpi=_POINTS, frameon=False)
        box = (LEFT / WIDTH, BOTTOM / height, (right - LEFT) / WIDTH, 1 - (TOP + BOTTOM) / height)
        axes = figure.add_axes(box, frameon=False, axisbelow=True)
        axes.tick_params(left=False, bottom=False, pad=6)
        axes.grid(axis="y")
        hints = paint(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    root = _bare(written.getvalue())
    _add_titles(root, hints)
    root.attrib |= {"role": "img", "aria-label": printable(description)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def write(
    axes: "Axes",
    text: str,
    at: tuple[float, float],
    gid: str | None = None,
    across: str = "left",
    up: str = "center",
) -> None:
    """Write a text at a place in points; of a long one the beginning.

    Args:
        axes: whose canvas it is.
        text: which may come from anybody's file.
        at: from the lower left corner of the canvas.
        gid: its class, where it has one.
        across, up: its alignment.
    """
    said = legible(text, _LONGEST)
    axes.annotate(said, at, xycoords="figure points", gid=gid, ha=across, va=up, zorder=4)


def _bare(written: str) -> ElementTree.Element:
    """Return what is drawn, without metadata, looks and what clips."""
    root = ElementTree.fromstring(written)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    root[:] = root.findall("g")
    for element in root.iter():
        kept = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        name = kept.pop("id", "") if element.tag == "g" else ""
        if name and "_" not in name:  # matplotlib's own names have one
            kept["class"] = name
        if found := re.search(r"text-anchor: (\w+)", kept.get("style", "")):
            kept["text-anchor"] = found[1]
        for key in ("d", "x", "y"):
            if key in kept:
                kept[key] = re.sub(r"\d+\.\d+|\s+", _shorter, kept[key]).strip()
        for key in ("style", "clip-path", "transform"):
            kept.pop(key, None)
        element.attrib = kept
        element.tail = None
        element.text = element.text if element.tag == "text" else None
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    return root


def _shorter(found: re.Match[str]) -> str:
    """Return a number with two digits after the point at most, or one space."""
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".") if found[0].strip() else " "


def _add_titles(root: ElementTree.Element, hints: Hints) -> None:
    for name, titles in hints.items():
        groups = [group for group in root.iter("g") if group.get("class") == name]
        marks = [mark for group in groups for mark in group.iter() if mark.tag in ("use", "text")]
        for mark, title in zip(marks, titles, strict=True):
            ElementTree.SubElement(mark, "title").text = printable(title)
