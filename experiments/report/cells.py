"""Cells, rows and tables of a report: for the page, with bars beside numbers, and as frames."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.report.measured import count_text, number, range_text
from fl_sim.metrics.payload import COUNTED
from fl_sim.metrics.vocabulary import known
from fl_sim.statistics import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

COUNTS = tuple(COUNTED.values())
TALL = 24
"""Rows up to which a table is shown whole."""


@dataclass(frozen=True)
class Cell:
    """One number, or one text.

    Args:
        text: for people.
        interval: the number and the ends of its interval; ``None`` for a text.
        range: the ends for people; empty where there are none.
        bar: length of a bar in [0, 1], where it has one.
        mark: where on the bar its floor stands, in [0, 1].
        dot: place on a track in [0, 1], instead of a bar.
        stack: lengths in [0, 1] of intact, damaged and lost, instead of a bar.
    """

    text: str
    interval: Interval | None = None
    range: str = ""
    bar: float | None = None
    mark: float | None = None
    dot: float | None = None
    stack: tuple[float, ...] = ()

    @property
    def value(self) -> str:
        """The number, exactly; empty for a text."""
        return "" if self.interval is None else repr(self.interval.mean)


@dataclass(frozen=True)
class Row:
    """A row: its name and its cells. ``strong`` ones are what a reader looks for."""

    head: str
    cells: list[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that belong together, under a name where they have one."""

    name: str
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its files.
        caption: what it shows.
        corner: name of the first column.
        columns: names of the others.
        blocks: rows.
        note: below it.
        tall: whether it scrolls in a box of its own.
    """

    name: str
    caption: str
    corner: str
    columns: list[str]
    blocks: list[Block]
    note: str = ""
    tall: bool = False
    text: tuple[int, ...] = field(default=())
    """Places of columns of text, which stand to the left."""


def plain_cell(
    found: Interval | None, metric: str = "", said: Callable[[float], str] | None = None
) -> Cell:
    """Return a number as its metric, or ``said``, writes it; a dash where it was not measured."""
    if found is None:
        return Cell("–")
    said = said or _format_of(metric)
    return Cell(said(found.mean), found, range_text(found, said))


def _format_of(metric: str) -> Callable[[float], str]:
    """Return how a metric's numbers are written."""
    about = known(metric)
    if about.format == "bytes":
        return _size
    if about.format == "count":
        return count_text
    return lambda value: number(value, about.digits)


def _size(count: float) -> str:
    """Return bytes for people, in powers of a thousand."""
    if not math.isfinite(count):
        return "unbounded" if count > 0 else number(count)
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def is_share(metric: str) -> bool:
    """Whether a metric's values are drawn from 0 to 1."""
    return known(metric).range[1] == 1.0


def barred(found: Interval | None, mark: float | None, metric: str = "") -> Cell:
    """Return a share with a bar, and its floor as a mark on the bar."""
    if found is None or math.isnan(found.mean):
        return plain_cell(found, metric)
    said = _format_of(metric)
    known_mark = None if mark is None or math.isnan(mark) else min(1.0, max(0.0, mark))
    bar = min(1.0, max(0.0, found.mean))
    return Cell(said(found.mean), found, range_text(found, said), bar=bar, mark=known_mark)


def single(value: float | None) -> Interval | None:
    """Return a number that was measured once, as an interval without ends."""
    return None if value is None else mean_interval([value])


def frame(tables: Iterable[tuple[dict[str, str], Table]], exact: bool) -> "pd.DataFrame":
    """Return tables of the same kind as one frame, a row a row.

    Args:
        tables: each with the labels of its group.
        exact: numbers, with the ends of intervals as columns of their own, rather than texts.
    """
    import pandas as pd

    lines = []
    for labels, table in tables:
        for block in table.blocks:
            for row in block.rows:
                line: dict[str, object] = dict(labels)
                if any(b.name for b in table.blocks):
                    line["group"] = block.name
                line[table.corner] = row.head
                for column, cell in zip(table.columns, row.cells, strict=True):
                    if cell.stack:
                        continue
                    line |= _columns(column, cell) if exact else {column: _said(cell)}
                lines.append(line)
    result = pd.DataFrame(lines)
    if exact:
        empty = [c for c in result if str(c).endswith((" low", " high")) and result[c].isna().all()]
        return result.drop(columns=empty)
    return result.fillna("")


def _columns(column: str, cell: Cell) -> dict[str, object]:
    interval = cell.interval
    if interval is None:
        text = cell.text if cell.text not in ("", "–") else None
        return {column: text, f"{column} low": None, f"{column} high": None}
    return {column: interval.mean, f"{column} low": interval.low, f"{column} high": interval.high}


def _said(cell: Cell) -> str:
    return f"{cell.text} ({cell.range})" if cell.range else cell.text
