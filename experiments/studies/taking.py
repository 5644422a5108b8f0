"""Taking the results of a study or a sweep, finished or not, into the study's folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import RESULTS, STUDIES, STUDY_FILE, GridStudy, Study
from experiments.studies.origin import joined, provenance, read_origin
from experiments.studies.rows import (
    ROWS,
    Known,
    identity_of,
    merged,
    ordered,
    read_rows,
    require_small,
    rows_of,
    stale_cells,
)
from experiments.tables.summary import CELL
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

_GRID = "grid.json"


@dataclass(frozen=True)
class Taken:
    """What was taken.

    Args:
        path: the study's table.
        said: what became of the rows, in one sentence.
    """

    path: Path
    said: str


def take(
    folder: Path,
    name: str | None = None,
    results: Path = RESULTS,
    full: bool = False,
    changes: Sequence[str] = (),
) -> Taken:
    """Take what was measured in a folder into the folder of its study.

    Of a study by sweeps the rows of all cells that have ended are merged into its ``rows.csv``: of
    a cell that both have, the later run's. Rows that no longer fit the study's grid are dropped.
    Table, figure and provenance are made anew. Of another study the files are copied.

    Args:
        folder: of a study or a sweep; it need not be finished.
        name: of the study; what the folder says where not given.
        results: folder of the studies' folders.
        full, changes: with which the cells were run; what the folder says, where it does.

    Raises:
        FlSimError: if the folder holds nothing of a study.
    """
    noted = read_origin(folder / STUDY_FILE)
    name = name or noted.get("study")
    name = name or next((path.stem for path in _tables(folder)), None)
    known = STUDIES.get(name) if name in STUDIES.names() else None
    sweeps = _sweeps(folder)
    if known is not None and known.by_grids is not None and (sweeps or (folder / ROWS).is_file()):
        settings = {
            "study": name,
            "full": noted.get("full", full),
            "set": noted.get("set", list(changes)),
        }
        return _take_rows(known, known.by_grids, folder, sweeps, results, settings)
    if sweeps and name is None:
        raise FlSimError(
            f"The sweep in {folder} does not say which study it belongs to; give --name."
        )
    return _copied(folder, name, results)


def _take_rows(
    study: Study,
    by_grids: GridStudy,
    folder: Path,
    sweeps: Mapping[Path, Iterable[str]],
    results: Path,
    settings: dict[str, Any],
) -> Taken:
    target, file = results / by_grids.name, f"{by_grids.name}.json"
    known = study.known(settings["full"], settings["set"])
    old, new = read_rows(target / ROWS), _new_rows(folder, sweeps, known)
    if new.empty:
        raise FlSimError(
            f"No cell in {folder} that has ended is one of the study {by_grids.name}; if settings "
            f"were changed, give the same --set, and --full if it was the whole study."
        )
    both = merged(old, new)
    stale = stale_cells(both, known)
    rows = ordered(both[~both[CELL].isin(stale)], known)
    require_small(rows, by_grids.name)
    kept = read_origin(target / file) if len(old) else {}
    origin = joined(joined(kept, read_origin(folder / file)), provenance(sweeps))
    by_grids.write(target, rows, {**origin, **settings})
    had, has = set(old[CELL]), set(rows[CELL])
    said = f"{len(has - had)} cells are new, {len(has & had)} were there"
    if stale:
        cell, why = next(iter(stale.items()))
        said += f", {len(stale)} are dropped; the first, {cell}: {why}"
    return Taken(target / f"{by_grids.name}.csv", f"{said}.")


def _new_rows(folder: Path, sweeps: Mapping[Path, Iterable[str]], known: Known) -> "pd.DataFrame":
    """Return the rows of the study's cells in a folder: of its sweeps, and of its file."""
    rows = read_rows(folder / ROWS)
    for place, cells in sweeps.items():
        own = _labels(place)
        fitting = [cell for cell in cells if identity_of(cell) in known.labels]
        labels = {cell: own.get(cell, known.labels[identity_of(cell)]) for cell in fitting}
        rows = merged(rows, rows_of(place, labels))
    return rows[~rows[CELL].isin(stale_cells(rows, known))]


def _sweeps(folder: Path) -> dict[Path, list[str]]:
    """Return the cells by folder of the sweeps in a folder, which may be one itself."""
    places = [path.parent for path in (folder / _GRID, *sorted(folder.glob(f"*/{_GRID}")))]
    return {
        place: sorted(path.name for path in (place / "cells").glob("*"))
        for place in places
        if (place / _GRID).is_file()
    }


def _labels(sweep: Path) -> dict[str, Mapping[str, str]]:
    """Return what a sweep's grid calls its cells; it may have been another one before."""
    grid = json.loads((sweep / _GRID).read_text(encoding="utf-8"))
    return {cell["name"]: cell["labels"] for cell in grid["cells"]}


def _tables(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.with_suffix(".csv").is_file()]


def _copied(folder: Path, name: str | None, results: Path) -> Taken:
    """Copy the tables, provenance and figure of a finished study that keeps no rows."""
    studies = _tables(folder)
    if len(studies) != 1:
        raise FlSimError(
            f"{folder} is neither the folder of a study (NAME.csv with NAME.json, or {STUDY_FILE}) "
            f"nor of a sweep ({_GRID})."
        )
    called = name or studies[0].stem
    for suffix in (".json", ".png", ".csv"):
        source = studies[0].with_suffix(suffix)
        if source.is_file():
            target = results / called / f"{called}{suffix}"
            write_atomically(target, source.read_bytes())
    for further in _further(called):
        if (folder / further).is_file():
            write_atomically(results / called / further, (folder / further).read_bytes())
    return Taken(target, "copied.")


def _further(name: str) -> set[str]:
    """Return the files of a study's tables beside the one that has its name."""
    if name not in STUDIES.names():
        return set()
    files = {file for table in STUDIES.get(name).tables.values() for file in table.files}
    return files - {f"{name}.csv"}
