"""Rows of a study: every number by cell, seed, round and stage, kept with what it came from.

``rows.csv`` in a study's folder has a row a cell, round and stage, with the grid's labels, a column
a metric, and where it was measured. What is kept is not run again, and tables are made of it; see
:class:`experiments.studies.base.GridStudy`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.identity import VERSION
from experiments.run.standing import TABLE, is_finished
from experiments.sweep.grid import Grid
from experiments.sweep.outcomes import noted
from experiments.tables.summary import CELL, LABEL, to_csv
from fl_sim.cells import read_texts
from fl_sim.errors import FlSimError, printable
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import column_order, describe, known
from fl_sim.results import in_order, read_table
from fl_sim.words import NO_EXTRACTION, SUMMED_UP

if TYPE_CHECKING:
    import pandas as pd

    from experiments.run.scenario import Scenario

ROWS = "rows.csv"
MOST_COLUMNS, MOST_BYTES = 70, 2**20
"""Metrics and bytes that a file of rows that is kept has at most."""

EXTRACTIONS = SUMMED_UP
"""Of the extractions of one model these are kept, and not every restoration."""

_KEYS = (CELL, "seed", "round", "stage")
_VERSION, _DATA, _BEGAN, _CPU = "identity_version", "data", "began", "cpu_seconds"
ORIGIN = (_VERSION, "fl_sim", "torch", _DATA, "machine", _CPU, _BEGAN)
"""Where a row comes from: version of identities, of fl-sim and of torch; the data files' SHA-256,
eight digits each; the machine; CPU seconds of the cell without what it shares; when it began."""

_SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class Known:
    """The cells that a study's grids have, by identity, whatever their seeds.

    Args:
        labels: what the grids call the values of their axes.
        scenarios: one cell each, of any seed.
    """

    labels: Mapping[str, Mapping[str, str]]
    scenarios: Mapping[str, "Scenario"]

    @classmethod
    def of(cls, grids: Iterable[Grid]) -> "Known":
        """Return those of several grids, in their order."""
        cells = {cell.scenario.identity: cell for grid in grids for cell in grid.cells}
        labels = {name: cell.labels for name, cell in cells.items()}
        return cls(labels, {name: cell.scenario for name, cell in cells.items()})


def rows_of(folder: Path, cells: Mapping[str, Mapping[str, str]]) -> "pd.DataFrame":
    """Return the rows of a sweep's finished cells.

    Of extractions :data:`EXTRACTIONS` are kept; of metrics of single parts those that short lists
    show, and no error by tensor.

    Args:
        folder: of the sweep.
        cells: labels of the cells that are wanted, by name.

    Returns:
        ``cell``, the labels as ``grid.<axis>``, ``seed``, ``round``, ``stage``, the metrics as
        :func:`experiments.tables.summary.wide` names them, and :data:`ORIGIN`.
    """
    import pandas as pd

    parts = []
    for name, labels in cells.items():
        place = folder / "cells" / name
        if is_finished(place):
            part = _wide(read_table(place / TABLE))
            same = {CELL: name, **{LABEL + axis: label for axis, label in labels.items()}}
            parts.append(part.assign(**same, **_origin(place, folder)))
    return _arranged(pd.concat(parts, ignore_index=True)) if parts else no_rows()


def no_rows() -> "pd.DataFrame":
    """Return a table of no rows."""
    import pandas as pd

    return pd.DataFrame(columns=[*_KEYS, *ORIGIN])


def read_rows(path: Path) -> "pd.DataFrame":
    """Read a file of rows; none where there is no file.

    Raises:
        FlSimError: if it is not one.
    """
    if not path.is_file():
        return no_rows()
    try:
        texts = read_texts(path)
        metrics = [name for name in map(str, texts) if _is_metric(name)]
        numbers = {name: _numbers(texts[name]) for name in metrics}
        whole = {name: texts[name].astype("int64") for name in ("seed", "round", _VERSION)}
        known = {name: texts[name] for name in (*_KEYS, *ORIGIN)}
    except (ValueError, KeyError) as error:
        raise FlSimError(
            f"{path} is not a study's file of rows ({printable(str(error))[:120]}); bring the rows "
            f"in again with 'fl-sim study tables --take FOLDER'."
        ) from None
    return texts.assign(**{**known, **numbers, **whole})


def write_rows(path: Path, rows: "pd.DataFrame") -> Path:
    """Write a file of rows: six digits of each number, all of whole ones."""
    return write_atomically(path, to_csv(rounded(rows, as_text=True)).encode())


def require_small(rows: "pd.DataFrame", name: str) -> None:
    """Refuse rows that would make a file too large to be kept with the code.

    Args:
        rows: any.
        name: of their study.

    Raises:
        FlSimError: beyond :data:`MOST_COLUMNS` metrics or :data:`MOST_BYTES`.
    """
    size = len(to_csv(rounded(rows, as_text=True)).encode())
    metrics = sum(_is_metric(str(column)) for column in rows)
    if metrics > MOST_COLUMNS or size > MOST_BYTES:
        raise FlSimError(
            f"The rows of the study {name} have {metrics} metrics in {size:,} bytes, but "
            f"{MOST_COLUMNS} in {MOST_BYTES:,} are the most; split the study."
        )


def rounded(rows: "pd.DataFrame", as_text: bool = False) -> "pd.DataFrame":
    """Return rows with their numbers as a file has them.

    Args:
        rows: any.
        as_text: leave the metrics as the file's texts.
    """
    metrics = [name for name in map(str, rows) if _is_metric(name)]
    texts = {name: rows[name].map(_text) for name in metrics}
    if as_text:
        return rows.assign(**texts)
    numbers = {name: _numbers(column) for name, column in texts.items()}
    return rows.assign(**numbers)


def long_of(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows as a sweep's long table, for a study's ``tabulate``.

    Returns:
        ``cell``, the labels as ``grid.<axis>``, ``seed``, ``round``, ``stage``, ``extraction``,
        ``metric`` and ``value``, in the order of the rows.
    """
    metrics = [name for name in map(str, rows) if _is_metric(name)]
    labels = [name for name in map(str, rows) if name.startswith(LABEL)]
    keys = [CELL, *labels, "seed", "round", "stage"]
    kept = rows[[*keys, *metrics]].reset_index(drop=True)
    long = kept.melt(keys, var_name="metric", ignore_index=False).dropna(subset="value")
    long = long.sort_index(kind="stable").reset_index(drop=True)
    named = {column: _named(column) for column in metrics}
    extraction = long["metric"].map({column: how for column, (_, how) in named.items()})
    metric = long["metric"].map({column: name for column, (name, _) in named.items()})
    long = long.assign(metric=metric, extraction=extraction)
    return long[[*keys, "extraction", "metric", "value"]]


def merged(old: "pd.DataFrame", new: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of both; of a cell that both have, the later run's."""
    import pandas as pd

    if old.empty or new.empty:
        return new if old.empty else old
    began = {cell: max(part) for cell, part in old.groupby(CELL)[_BEGAN]}
    times = zip(new[CELL], new[_BEGAN], strict=True)
    new = new[[began.get(cell, "") <= time for cell, time in times]]
    return _arranged(pd.concat([old[~old[CELL].isin(new[CELL])], new], ignore_index=True))


def stale_cells(rows: "pd.DataFrame", known_cells: Known) -> dict[str, str]:
    """Return the cells whose rows are not of a study's grids any more, and why.

    A cell is stale whose row was made under another version of identities, whose name the grids do
    not have, or which was measured on another data file than the latest cells on that dataset.

    Args:
        rows: any.
        known_cells: of the grids.
    """
    found: dict[str, str] = {}
    files: dict[str, str] = {}
    heads = rows.drop_duplicates(CELL).sort_values(_BEGAN, ascending=False, kind="stable")
    for cell, version, data in zip(heads[CELL], heads[_VERSION], heads[_DATA], strict=True):
        scenario = known_cells.scenarios.get(identity_of(cell))
        if version != VERSION:
            found[cell] = f"it is of version {version} of identities, which is now {VERSION}"
        elif scenario is None:
            found[cell] = "no cell of the study's grid has this name"
        elif files.setdefault(scenario.dataset.model_dump_json(), data) != data:
            found[cell] = f"its data file ({data}) is another one than that of later cells"
    return found


def ordered(rows: "pd.DataFrame", known_cells: Known, relabel: bool = False) -> "pd.DataFrame":
    """Return rows in the order of the grids, then of seeds.

    Args:
        rows: of cells that the grids have.
        known_cells: of the grids.
        relabel: call the axes' values what the grids call them now.
    """
    places = {name: place for place, name in enumerate(known_cells.labels)}
    identities = rows[CELL].map(identity_of)
    if relabel:
        axes = list(dict.fromkeys(axis for own in known_cells.labels.values() for axis in own))
        rows = rows.drop(columns=[name for name in rows if str(name).startswith(LABEL)])
        called = {
            LABEL + axis: [known_cells.labels[name].get(axis, "") for name in identities]
            for axis in axes
        }
        rows = rows.assign(**called)
    order = rows.assign(_place=identities.map(places)).sort_values(
        ["_place", "seed"], kind="stable"
    )
    return _arranged(order.drop(columns="_place").reset_index(drop=True))


def identity_of(cell: str) -> str:
    """Return a cell's name without its seed."""
    return _SEED.sub("", cell)


def data_word(checksums: Iterable[str]) -> str:
    """Return the checksums of data files as a row has them; ``"-"`` for none."""
    return "+".join(sorted(checksum[:8] for checksum in checksums)) or "-"


def _wide(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a run's long table as a row a round and stage, a column a metric that is kept."""
    rows = table[table["extraction"].isin((NO_EXTRACTION, *EXTRACTIONS))]
    rows = rows[rows["metric"].map(_is_kept)]
    suffix = (" " + rows["extraction"]).where(rows["extraction"] != NO_EXTRACTION, "")
    places = {stage: place for place, stage in enumerate(sorted(set(rows["stage"]), key=in_order))}
    rows = rows.assign(column=rows["metric"] + suffix, place=rows["stage"].map(places))
    keys = ["seed", "round", "place", "stage"]
    wide = rows.pivot_table(index=keys, columns="column", values="value", aggfunc="first")
    wide.columns.name = None
    return wide.reset_index().drop(columns="place")


def _is_kept(metric: str) -> bool:
    found = describe(metric)
    return not found.part or bool(known(found.base).shown)


def _origin(place: Path, folder: Path) -> dict[str, Any]:
    """Return :data:`ORIGIN` of a cell's folder in a sweep's folder."""
    about = json.loads((place / "scenario.json").read_text(encoding="utf-8"))
    versions, own = about["versions"], noted([place.name], folder)
    values = (
        VERSION,
        versions["fl-sim"],
        versions["torch"],
        data_word(file["sha256"] for file in about["data"]),
        _machine_word(about["machine"], about["scenario"]["device"]),
        round(own[place.name].cpu, 1) if place.name in own else "",
        about["began"],
    )
    return dict(zip(ORIGIN, values, strict=True))


def _machine_word(machine: Mapping[str, Any], device: str) -> str:
    """Return what a cell was computed on: the GPU, or the kind and number of CPUs."""
    if device != "cpu" and machine["gpu"]:
        return str(machine["gpu"])
    kind = re.search(r"x86_64|amd64|aarch64|arm64", str(machine["system"]), re.IGNORECASE)
    return f"{kind[0].lower() if kind else 'CPU'} x {machine['cpus']}"


def _arranged(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return rows with their columns in order: keys, labels, metrics, origin."""
    names = [str(name) for name in rows]
    labels = [name for name in names if name.startswith(LABEL)]
    metrics = sorted(filter(_is_metric, names), key=column_order)
    frame = rows[[CELL, *labels, "seed", "round", "stage", *metrics, *ORIGIN]]
    filled = {label: frame[label].fillna("") for label in labels}
    return frame.assign(**filled) if filled else frame


def _is_metric(column: str) -> bool:
    return column not in (*_KEYS, *ORIGIN) and not column.startswith(LABEL)


def _named(column: str) -> tuple[str, str]:
    """Return metric and extraction of a column."""
    metric, _, extraction = column.rpartition(" ")
    return (metric, extraction) if extraction in EXTRACTIONS else (column, NO_EXTRACTION)


def _numbers(texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a column of a file's texts as numbers; an empty one is none."""
    return texts.map(lambda text: float(text or "nan")).astype("float64")


def _text(value: float) -> str:
    if value != value:
        return ""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
