"""The tables of the README, the documentation and studies' pages, made of studies' results.

A table stands in a page between ``<!-- table: NAME -->`` and ``<!-- end -->``; its study says which
files, columns, headings and formats it has. ``fl-sim study tables`` (or ``make tables``) writes
them anew. Results come in with ``--take``; see :mod:`experiments.studies.taking`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import RESULTS, STUDIES, Study
from experiments.studies.origin import read_origin
from experiments.studies.published_tables import Column, PublishedTable
from experiments.studies.rows import ROWS, read_rows, stale_cells
from experiments.tables.summary import to_csv, to_markdown, with_interval
from fl_sim.errors import FlSimError, did_you_mean, unknown_name
from fl_sim.files import write_atomically
from fl_sim.statistics import Interval, within

if TYPE_CHECKING:
    import pandas as pd

README = RESULTS.parents[1] / "README.md"
DOCS = README.parent / "docs"
"""Pages of the documentation that were written by hand."""

INDEX = "studies"
"""The table of all studies."""

MEANS_ONLY = "\n*Means only; rows by seed are not kept.*\n"
"""Below a table without a row a seed whose provenance says ``"rows": false``."""

_BEGIN = re.compile(r"<!-- table: (.+?) -->\n")
_END = "<!-- end -->"


def pages() -> list[Path]:
    """Return the pages that tables stand in: README, documentation, and those of the studies."""
    studies = [RESULTS / "README.md", *sorted(RESULTS.glob("*/README.md"))]
    return [README, *sorted(DOCS.rglob("*.md")), *studies]


def tables() -> dict[str, PublishedTable]:
    """Return every study's tables by name; their files' paths begin with the study's folder."""
    return {
        name: replace(table, files=tuple(f"{study.name}/{file}" for file in table.files))
        for study in STUDIES.entries()
        for name, table in study.component.tables.items()
    }


def markdown(name: str, results: Path = RESULTS) -> str:
    """Return one table of a page.

    Args:
        name: of one of :func:`tables`.
        results: folder of the studies' folders.

    Raises:
        FlSimError: if there is no such table, or a file or column of it is missing.
    """
    import pandas as pd

    known = tables()
    if name not in known:
        raise unknown_name("table of a study", name, known)
    table = known[name]
    frame = pd.concat([_read(results / file, table) for file in table.files], ignore_index=True)
    for column, value in table.where.items():
        frame = frame[frame[column] == value]
    for column, unwanted in table.without.items():
        frame = frame[~frame[column].isin(unwanted)]
    for column, wanted in table.only.items():
        frame = frame[frame[column].isin(wanted)]
    lines = []
    for values, group in frame.groupby([*table.keys], sort=False, dropna=False):
        texts = [_called(str(value), table.names) for value in values]
        lines.append([*texts, *(_cell(group, column) for column in table.columns)])
    headings = [*table.keys.values(), *(column.heading for column in table.columns)]
    shown = pd.DataFrame(lines, columns=headings)
    # What was not measured anywhere needs no column.
    empty = [c for c in headings[len(table.keys) :] if (shown[c] == "").all()]
    origins = (read_origin((results / file).with_suffix(".json")) for file in table.files)
    means_only = "seed" not in frame and any(origin.get("rows") is False for origin in origins)
    return to_markdown(shown.drop(columns=empty)) + (MEANS_ONLY if means_only else "")


def refresh(results: Path = RESULTS, check: bool = False) -> list[Path]:
    """Make the tables of studies anew from their rows, where rows are kept.

    Args:
        results: folder of the studies' folders.
        check: change nothing.

    Returns:
        The tables.

    Raises:
        FlSimError: if rows do not fit their study's grid any more; or, with ``check``, if a table
            is not what its rows say.
    """
    written = []
    for folder in sorted(path.parent for path in results.glob(f"*/{ROWS}")):
        study = STUDIES.get(folder.name)
        if study.by_grids is not None:
            for name, table in study.by_grids.made_of(_fitting_rows(study, folder)).items():
                path, fresh = folder / f"{name}.csv", to_csv(table).encode()
                same = path.is_file() and path.read_bytes() == fresh
                if check and not same:
                    raise FlSimError(f"{path} is not what its {ROWS} says; run make tables.")
                if not same:
                    write_atomically(path, fresh)
                written.append(path)
    return written


def _fitting_rows(study: Study, folder: Path) -> "pd.DataFrame":
    """Return a study's rows; a stale one is refused."""
    origin = read_origin(folder / f"{folder.name}.json")
    rows = read_rows(folder / ROWS)
    stale = stale_cells(rows, study.known(origin.get("full", False), origin.get("set", [])))
    for cell, why in stale.items():
        raise FlSimError(
            f"{folder / ROWS} has rows of the cell {cell}, which is stale: {why}. Run 'fl-sim "
            f"study {folder.name}' and take it in with --take, which drops such rows."
        )
    return rows


def _index() -> str:
    """Return the table of studies: what each asks, and the page on its results."""
    lines = ["| study | question | results |", "| --- | --- | --- |"]
    for name, question in STUDIES.summaries().items():
        page = f"[page]({name}/README.md)" if (RESULTS / name / "README.md").is_file() else ""
        lines.append(f"| `{name}` | {question} | {page} |")
    return "\n".join(lines) + "\n"


def updated(text: str, results: Path = RESULTS) -> str:
    """Return a page with its tables written anew.

    Raises:
        FlSimError: if a marker has no end or an unknown name, or a table cannot be made.
    """
    parts, position = [], 0
    for marker in _BEGIN.finditer(text):
        end = text.find(_END, marker.end())
        following = _BEGIN.search(text, marker.end())
        if end < 0 or (following is not None and following.start() < end):
            raise FlSimError(
                f"The table '{marker[1]}' has no end; put {_END} on the line below it."
            )
        table = _index() if marker[1] == INDEX else markdown(marker[1], results)
        parts += [text[position : marker.end()], table]
        position = end
    return "".join(parts) + text[position:]


def _read(path: Path, table: PublishedTable) -> "pd.DataFrame":
    """Read a CSV: a study's, or a sweep's summary, whose metrics become columns."""
    import pandas as pd

    if not path.is_file():
        raise FlSimError(
            f"A page shows {path.name}, which is not in {path.parent}; bring it in with "
            f"--take FOLDER."
        )
    # Keys are texts as they are: "none" is a name, and 0.30 stays 0.30.
    frame = pd.read_csv(
        path, dtype=dict.fromkeys(table.keys, str), keep_default_na=False, na_values=_numbers(table)
    )
    frame = widened(frame)
    staged = ["stage"] if any(column.stage for column in table.columns) else []
    for column in [*table.keys, *table.where, *staged]:
        if column not in frame.columns:
            known = [str(name) for name in frame.columns]
            raise FlSimError(f"{path} has no column '{column}'.{did_you_mean(column, known)}")
    if not any(column.column in frame.columns for column in table.columns):
        raise FlSimError(f"{path} has none of the columns that its page shows.")
    if "round" in frame.columns:
        frame = frame[frame["round"] == frame["round"].max()]
    return frame


def _called(text: str, names: Mapping[str, str]) -> str:
    """Return what the page calls a text; what follows a comma is kept."""
    for name, other in names.items():
        if text == name or text.startswith(f"{name}, "):
            return other + text.removeprefix(name)
    return text


def _numbers(table: PublishedTable) -> dict[str, list[str]]:
    """Return what counts as missing, by column: an empty text in a column of numbers."""
    names = [c.column + end for c in table.columns for end in ("", " low", " high")]
    return {name: ["", "nan"] for name in [*names, "mean", "low", "high"]}


def widened(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Return a sweep's summary with the columns ``<metric>``, ``<metric> low`` and ``... high``.

    Any other table stays as it is.
    """
    import pandas as pd

    if not {"metric", "mean", "low", "high"} <= set(summary.columns):
        return summary
    keys = [str(c) for c in summary.columns[: list(summary.columns).index("metric")]]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in summary.to_dict("records"):
        group = tuple(line[key] for key in keys)
        row = rows.setdefault(group, dict(zip(keys, group, strict=True)))
        metric = line["metric"]
        row |= {metric: line["mean"], f"{metric} low": line["low"], f"{metric} high": line["high"]}
    return pd.DataFrame(rows.values())


def _cell(group: "pd.DataFrame", column: Column) -> str:
    """Return the mean of a group's rows, with its interval or the range of several."""
    rows = group if column.stage is None else group[group["stage"] == column.stage]
    if column.column not in rows or rows[column.column].isna().all():
        return ""
    values = rows[column.column].dropna().astype(float)
    mean, written = float(values.mean()), _text(column)
    ends = [f"{column.column} low", f"{column.column} high"]
    if set(ends) <= set(rows.columns):
        low, high = (float(rows[end].mean()) for end in ends)
        limits = column.bounds or column.about.range
        return with_interval(inside(Interval(mean, low, high, len(values)), limits), written)
    shown = [written(float(end)) for end in (values.min(), values.max())]
    return written(mean) + (f" ({shown[0]}-{shown[1]})" if shown[0] != shown[1] else "")


def inside(interval: Interval, limits: tuple[float, float]) -> Interval:
    """Return an interval that stays where values can be.

    Results of earlier versions have Student's intervals, which do not.

    Args:
        interval: any.
        limits: lowest and highest value that there can be.
    """
    if not (interval.low < limits[0] or interval.high > limits[1]):
        return interval
    low, high = within(interval.mean, (interval.high - interval.low) / 2, limits)
    return replace(interval, low=max(low, limits[0]), high=min(high, limits[1]))


def _text(column: Column) -> Callable[[float], str]:
    """Return how a column's numbers are written."""

    def percent(value: float) -> str:
        return f"{100 * value:.2g} %" if value else "0"

    kind = column.format or column.about.format
    if kind == "percent":
        return percent
    digits = 0 if kind in ("count", "bytes") else column.about.brief
    return lambda value: f"{value:.{digits}f}"


def write_pages(check: bool = False) -> dict[Path, list[str]]:
    """Write the tables of all pages anew.

    Args:
        check: change nothing.

    Returns:
        The tables' names by page.

    Raises:
        FlSimError: with ``check``, if a page differs; or if a table cannot be made.
    """
    refresh(check=check)
    written = {}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        fresh = updated(text)
        if check and fresh != text:
            raise FlSimError(f"Tables in {page} differ from the studies' results; run make tables.")
        if fresh != text:
            write_atomically(page, fresh.encode())
        written[page] = _BEGIN.findall(fresh)
    return written
