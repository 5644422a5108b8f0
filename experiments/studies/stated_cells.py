"""What a mark behind a number says: which cells of a study's CSV files the number comes from.

A mark's text is a list of references, one a number, in the numbers' order::

    defenses.csv [model=CNN, defense=LWLRD] auc, "ssim raw", [defense=none] auc max, auc low

A reference names a file, rows, a column, and how their numbers become one. What it leaves out is as
in the reference before: rows in brackets add to the rows before them, a new file begins anew, and a
column without a word on how is a mean. ``A - B`` is a difference.

* File: in the page's folder, or ``STUDY/FILE`` in that of the studies.
* Rows: ``[key=value, key=value or value]``; ``*`` stands for any text, so that ``key=*`` lifts a
  condition. ``key`` may leave out the ``grid.`` of a file of rows. Quotes hold what has commas.
* Column: a word, or several in quotes; of a sweep's summary, a metric.
* How: one of :data:`HOWS`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.published import widened
from experiments.tables.summary import LABEL
from fl_sim.cells import read_texts
from fl_sim.errors import FlSimError, did_you_mean, unknown_name

if TYPE_CHECKING:
    import pandas as pd

HOWS = {
    "mean": "the rows' mean",
    "min": "their smallest",
    "max": "their largest",
    "sum": "their sum",
    "count": "how many rows have something in the column",
    "distinct": "how many different texts the column has",
    "low": "the lower end of an interval, the column '<column> low'",
    "high": "its upper end",
    "half": "half of its width",
    "range": "two numbers, the smallest and the largest",
}
"""How the numbers of several rows become the one that a page states."""

_QUOTED = r'"[^"]*"'
_PART = re.compile(
    rf"\s*(?:(?P<file>[\w./-]+\.csv)|\[(?P<rows>(?:{_QUOTED}|[^\]\"])*)\]|(?P<quoted>{_QUOTED})"
    r"|(?P<minus>-(?=\s))|(?P<comma>,)|(?P<word>[\w.]+))\s*"
)
_VALUE = rf"(?:{_QUOTED}|[^,\"])+"
_CONDITION = re.compile(rf"\s*(?P<key>{_QUOTED}|[^=,]+?)\s*=\s*(?P<values>{_VALUE})\s*(?:,|$)")


@dataclass(frozen=True)
class Cells:
    """Cells of one column, and how they become one number.

    Args:
        file: as the mark names it.
        rows: texts that a row may have, by key.
        column: of the file.
        how: one of :data:`HOWS`.
    """

    file: str = ""
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    column: str = ""
    how: str = "mean"

    def __str__(self) -> str:
        rows = ", ".join(f"{key}={' or '.join(values)}" for key, values in self.rows.items())
        return f"{self.file} [{rows}] {self.column} {self.how}"


@dataclass(frozen=True)
class Reference:
    """Where one stated number comes from.

    Args:
        cells: their number.
        less: what is subtracted from it.
    """

    cells: Cells
    less: tuple[Cells, ...] = ()

    def __str__(self) -> str:
        return " - ".join(map(str, (self.cells, *self.less)))


def parsed(mark: str) -> list[Reference]:
    """Return the references of a mark, one a number.

    Args:
        mark: its text, without ``=`` in front.

    Raises:
        FlSimError: if it is not a list of references.
    """
    found: list[Reference] = []
    cells = Cells()
    for item in _items(mark):
        terms: list[Cells] = []
        for parts in item:
            cells = _cells(parts, cells, mark)
            terms.append(cells)
        found += _references(terms)
    return found


def _items(mark: str) -> Iterator[list[list[re.Match[str]]]]:
    """Return the parts of each reference, by term of its difference."""
    item: list[list[re.Match[str]]] = [[]]
    position = 0
    while position < len(mark):
        part = _PART.match(mark, position)
        if part is None:
            raise FlSimError(
                f"the mark '{mark.strip()}' cannot be read from '{mark[position:].strip()}' on; "
                f"write FILE.csv [key=value] column how, with quotes around names of several words"
            )
        position = part.end()
        if part["comma"]:
            yield item
            item = [[]]
        elif part["minus"]:
            item.append([])
        else:
            item[-1].append(part)
    yield item


def _cells(parts: Sequence[re.Match[str]], before: Cells, mark: str) -> Cells:
    """Return what a term names; the rest is as before."""
    cells = before
    for part in parts:
        if part["file"]:
            cells = replace(cells, file=part["file"], rows={})
        elif part["rows"] is not None:
            cells = replace(cells, rows={**cells.rows, **_conditions(part["rows"])})
        elif part["word"] in HOWS:
            cells = replace(cells, how=part["word"])
        else:
            cells = replace(cells, column=part["word"] or _unquoted(part["quoted"]), how="mean")
    if not (parts and cells.file and cells.column):
        raise FlSimError(
            f"the mark '{mark.strip()}' names no {'file' if not cells.file else 'column'} for one "
            f"of its numbers; write FILE.csv [key=value] column for each, with commas between"
        )
    return cells


def _conditions(text: str) -> dict[str, tuple[str, ...]]:
    """Return the texts that rows may have, by key."""
    conditions, position = {}, 0
    while position < len(text.rstrip()):
        found = _CONDITION.match(text, position)
        if found is None:
            raise FlSimError(f"the rows '[{text}]' are not 'key=value, key=value'")
        values = re.split(r"\s+or\s+(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", found["values"].strip())
        conditions[_unquoted(found["key"])] = tuple(_unquoted(value) for value in values)
        position = found.end()
    return conditions


def _unquoted(text: str) -> str:
    """Return a text without quotes, and with one space where a line is broken."""
    return " ".join(text.strip().strip('"').split())


def _references(terms: list[Cells]) -> list[Reference]:
    """Return the reference that an item's terms make; a range makes two."""
    first, *less = terms
    if "range" not in [term.how for term in terms]:
        return [Reference(first, tuple(less))]
    if less:
        raise FlSimError(f"a range is two numbers and cannot be part of a difference: {first}")
    return [Reference(replace(first, how=how)) for how in ("min", "max")]


class Source:
    """The CSV files that a page's marks name.

    Args:
        folder: of the page.
        results: folder of the studies' folders.
    """

    def __init__(self, folder: Path, results: Path) -> None:
        self._folder, self._results = folder, results
        self._tables: dict[Path, pd.DataFrame] = {}

    def value(self, reference: Reference) -> float:
        """Return the number that a reference names.

        Raises:
            FlSimError: if there is no such file, key, value or column, or no number there.
        """
        value, *less = (self._number(cells) for cells in (reference.cells, *reference.less))
        return value - sum(less)

    def _number(self, cells: Cells) -> float:
        rows = self._rows(cells)
        if cells.how in ("low", "high"):
            return _mean(rows, f"{cells.column} {cells.how}", cells)
        if cells.how == "half":
            low, high = (_mean(rows, f"{cells.column} {end}", cells) for end in ("low", "high"))
            return (high - low) / 2
        texts = rows[_column(rows, cells.column, cells.file)]
        if cells.how in ("count", "distinct"):
            texts = texts[texts != ""]
            return float(len(texts) if cells.how == "count" else texts.nunique())
        return float(_numbers(rows, cells.column, cells).agg(cells.how))

    def _rows(self, cells: Cells) -> "pd.DataFrame":
        """Return the rows that fulfil all conditions."""
        rows = self._table(cells.file)
        for key, wanted in cells.rows.items():
            texts = [str(text) for text in rows[_column(rows, key, cells.file)]]
            kept = [any(_fits(text, each) for each in wanted) for text in texts]
            absent = [each for each in wanted if not any(_fits(text, each) for text in texts)]
            if absent:
                raise FlSimError(
                    f"{cells.file} has no row with {key}={absent[0]} among those that fit the "
                    f"mark's other keys.{did_you_mean(absent[0], texts)}"
                )
            rows = rows[kept]
        return rows

    def _table(self, file: str) -> "pd.DataFrame":
        path = (self._results if "/" in file else self._folder) / file
        if path not in self._tables:
            if not path.is_file():
                raise unknown_name("file of a study", file, self._files())
            self._tables[path] = widened(read_texts(path))
        return self._tables[path]

    def _files(self) -> list[str]:
        """Return the names that a mark may give to a file."""
        others = (path.relative_to(self._results) for path in self._results.glob("*/*.csv"))
        return [*(path.name for path in self._folder.glob("*.csv")), *map(str, others)]


def _column(rows: "pd.DataFrame", name: str, file: str) -> str:
    """Return a column's whole name."""
    for whole in (name, LABEL + name):
        if whole in rows:
            return whole
    known = [str(column) for column in rows]
    raise FlSimError(f"{file} has no column '{name}'.{did_you_mean(name, known)}")


def _numbers(rows: "pd.DataFrame", column: str, cells: Cells) -> "pd.Series[float]":
    """Return a column's numbers, of which there is one at least."""
    import pandas as pd

    texts = rows[_column(rows, column, cells.file)]
    numbers = pd.to_numeric(texts, errors="coerce").dropna()
    if numbers.empty:
        raise FlSimError(f"{cells} has no number")
    return numbers


def _mean(rows: "pd.DataFrame", column: str, cells: Cells) -> float:
    return float(_numbers(rows, column, cells).mean())


def _fits(text: str, wanted: str) -> bool:
    """Return whether a text is the one wanted, in which ``*`` stands for any."""
    return re.fullmatch(re.escape(wanted).replace(r"\*", ".*"), text, re.DOTALL) is not None
