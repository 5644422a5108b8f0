"""Folders of runs and sweeps, read: a table each, whatever the files claim to hold."""

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.about import read_about
from experiments.report.runs import IDENTIFIED, Run
from experiments.tables.summary import CELL, LABEL, labels_of
from fl_sim.cells import read_texts
from fl_sim.errors import FlSimError, did_you_mean, printable
from fl_sim.metrics.vocabulary import known
from fl_sim.results import COLUMNS, read_table, typed_columns

if TYPE_CHECKING:
    import pandas as pd

# What a file may claim to hold, for its size: tables of long texts that repeat are small files.
_ROWS = 1_000_000
_BYTES = 64 << 20
_MOST_EXPANSION = 200


def is_sweep(folder: Path) -> bool:
    """Tell a folder of a sweep from one of a run.

    Raises:
        FlSimError: if it is neither, or a sweep that has not come to its end.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, siblings) if len(siblings) else ""
        # All siblings would be no help.
        raise FlSimError(
            f"The folder {folder} does not exist.{hint if 'Did you mean' in hint else ''}"
        )
    if (folder / "results.csv").is_file():
        return False
    if any((folder / name).is_file() for name in ("table.csv", "table.parquet")):
        return True
    if (folder / "grid.json").is_file():
        raise FlSimError(
            f"The sweep in {folder} has no table yet; run it to its end with fl-sim sweep."
        )
    raise FlSimError(
        f"The folder {folder} is neither a run's (it has no results.csv) nor a sweep's (no "
        f"table.csv); give the folder that fl-sim run or fl-sim sweep wrote."
    )


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        FlSimError: if a file is damaged, or nothing is measured yet.
    """
    table = read_table(folder / "results.csv")
    if table.empty:
        raise FlSimError(f"The run in {folder} has measured nothing yet; let it run further.")
    return Run(str(folder), folder, read_about(folder / "scenario.json"), _with_identified(table))


def read_sweep(folder: Path) -> list[Run]:
    """Read a sweep's table, and what else is there of its cells.

    Raises:
        FlSimError: if a file is damaged, or nothing is measured yet.
    """
    table = _with_identified(_sweep_table(folder))
    # Sorted once, the rows of a cell are a slice, which copies nothing.
    cells, names = table[CELL].factorize()
    order = cells.argsort(kind="stable")
    starts = [*cells[order].searchsorted(range(len(names) + 1))]
    table = table.iloc[order].reset_index(drop=True)
    labels = {axis: table[LABEL + axis].iloc[starts[:-1]].tolist() for axis in labels_of(table)}
    table = table[list(COLUMNS)]
    runs = []
    for place, name in enumerate(map(str, names)):
        # The name comes from a file: it must not lead out of the sweep's folder.
        inside = folder / "cells" / name if name == Path(name).name else None
        there = inside is not None and (inside / "scenario.json").is_file()
        runs.append(
            Run(
                f"{folder}/cells/{printable(name)}",
                inside if there else None,
                read_about(inside / "scenario.json") if there and inside is not None else {},
                table.iloc[starts[place] : starts[place + 1]].reset_index(drop=True),
                {axis: str(column[place]) for axis, column in labels.items()},
            )
        )
    return runs


def _sweep_table(folder: Path) -> "pd.DataFrame":
    path = folder / "table.parquet"
    path = path if path.is_file() else folder / "table.csv"
    name = printable(str(path))
    try:
        if path.suffix == ".parquet":
            table = _read_parquet(path)
        else:  # written with nothing for what is not a number
            table = read_texts(path).replace({"value": {"": "nan"}})
    except FlSimError:
        raise
    except Exception as error:  # pandas and pyarrow have their own for each way to be no table
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The file {name} is not the table of a sweep: {said}.") from None
    if len(set(table.columns)) < len(table.columns):
        raise FlSimError(f"The file {name} is not the table of a sweep: a column is there twice.")
    missing = [column for column in (CELL, *COLUMNS) if column not in table.columns]
    if missing:
        raise FlSimError(
            f"The file {name} is not the table of a sweep: it has no column '{missing[0]}'."
        )
    if table.empty:
        raise FlSimError(f"The sweep in {folder} has measured nothing yet.")
    labels = [column for column in table.columns if column.startswith(LABEL)]
    return typed_columns(table, [CELL, *labels, *COLUMNS], f"The table {name}")


def _read_parquet(path: Path) -> "pd.DataFrame":
    """Read a Parquet table for what it holds, without what it says of itself to pandas.

    Raises:
        FlSimError: if it claims more rows than its size can hold.
    """
    import pyarrow.parquet as pq

    size = path.stat().st_size
    with pq.ParquetFile(path) as file:
        told = file.metadata
        groups = [told.row_group(number) for number in range(told.num_row_groups)]
        rows = max([told.num_rows, *(group.num_rows for group in groups)])
        weight = sum(group.total_byte_size for group in groups)
        if not 0 <= rows <= _ROWS + size or weight > _BYTES + _MOST_EXPANSION * size:
            raise FlSimError(
                f"The table {printable(str(path))} claims {rows} rows in {weight} bytes, which a "
                f"file of {size} bytes does not hold."
            )
        columns = [str(name) for name in file.schema_arrow.names]
        table = file.read(use_threads=False).replace_schema_metadata(None)
        table.validate(full=True)  # texts that are no UTF-8 are noticed here, and not before
        frame = table.to_pandas(ignore_metadata=True)
    frame.columns = columns
    return frame


def read_failed(folder: Path) -> list[dict[str, str]]:
    """Return the cells of a sweep that failed, a dictionary each.

    Raises:
        FlSimError: if the file is damaged.
    """
    path = folder / "failed.csv"
    if not path.is_file():
        return []
    try:
        frame = read_texts(path)
    except Exception as error:  # pandas has its own for each way to be no table
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The file {printable(str(path))} cannot be read: {said}.") from None
    return [{str(k): str(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _with_identified(table: "pd.DataFrame") -> "pd.DataFrame":
    """Add :data:`IDENTIFIED` by extraction, as rows of their own below the others."""
    import pandas as pd

    about = known(IDENTIFIED)
    either = table["metric"].isin(about.best_of)
    told = [CELL, *COLUMNS] if CELL in table else list(COLUMNS)
    keys = [name for name in told if name not in ("metric", "value")]
    values = table[either].groupby(keys, sort=False, as_index=False)["value"]
    best = values.min() if about.lower_leaks else values.max()
    return pd.concat([table, best.assign(metric=IDENTIFIED)[told]], ignore_index=True)
