"""What a study has to run: the cells that are asked for, less those whose rows are kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments.studies.rows import Known, data_word, ordered, stale_cells
from experiments.sweep.grid import Grid
from experiments.tables.summary import CELL
from fl_sim.errors import FlSimError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


@dataclass(frozen=True)
class Plan:
    """What is run of a study, and what is kept.

    Args:
        known: the cells of its whole grids.
        asked: the cells that are asked for, by part.
        open: those of them that are run.
        kept: rows of cells that are not run.
        stale: cells whose rows fit no more, and why.
    """

    known: Known
    asked: Mapping[str, Grid]
    open: Mapping[str, Grid]
    kept: "pd.DataFrame"
    stale: Mapping[str, str]

    def __str__(self) -> str:
        asked, to_run = (
            sum(len(grid.cells) for grid in grids.values()) for grids in (self.asked, self.open)
        )
        said = f"{asked - to_run} of {asked} cells are kept in rows.csv; {to_run} to run."
        if not self.stale:
            return said
        cell, why = next(iter(self.stale.items()))
        return f"{said} Left out, stale: {len(self.stale)} cells; the first, {cell}: {why}."


def planned(
    grids: Mapping[str, Grid],
    rows: "pd.DataFrame",
    only: Sequence[str] = (),
    again: bool = False,
    data_roots: "Mapping[str, Path | None] | None" = None,
) -> Plan:
    """Return what is to be run.

    Args:
        grids: the study's, by part.
        rows: kept.
        only: ``"axis=label"``: the cells that are asked for.
        again: ask for cells although their rows are kept.
        data_roots: folders of data files by part; rows measured on other files are stale.

    Raises:
        FlSimError: if ``only`` has an unknown axis or label, or leaves no cell.
    """
    known = Known.of(grids.values())
    asked = narrowed(grids, only)
    stale = stale_cells(rows, known) | _of_other_files(rows, asked, known, data_roots or {})
    fitting = rows[~rows[CELL].isin(stale)]
    wanted = {cell.name for grid in asked.values() for cell in grid.cells}
    if again:
        fitting = fitting[~fitting[CELL].isin(wanted)]
    there = set(fitting[CELL])
    still = {
        part: replace(grid, cells=tuple(cell for cell in grid.cells if cell.name not in there))
        for part, grid in asked.items()
    }
    kept = ordered(fitting, known, relabel=True) if len(fitting) else fitting
    return Plan(known, asked, still, kept, stale)


def narrowed(grids: Mapping[str, Grid], only: Iterable[str]) -> dict[str, Grid]:
    """Return grids of the cells that have given labels.

    Args:
        grids: by part.
        only: ``"axis=label"``; labels of one axis add up, axes narrow each other. A label may be
            given by what stands before its first comma.

    Raises:
        FlSimError: if an axis or label is unknown, or no cell is left.
    """
    wanted: dict[str, set[str]] = {}
    for text in only:
        axis, _, label = (part.strip() for part in text.partition("="))
        wanted.setdefault(axis, set()).update(_meant(axis, label, grids))
    left = {
        part: replace(
            grid,
            cells=tuple(
                cell
                for cell in grid.cells
                if all(cell.labels.get(axis) in labels for axis, labels in wanted.items())
            ),
        )
        for part, grid in grids.items()
    }
    if not any(grid.cells for grid in left.values()):
        raise FlSimError(f"No cell of the study is left by --only {', '.join(only)}.")
    return left


def _meant(axis: str, label: str, grids: Mapping[str, Grid]) -> set[str]:
    """Return the labels of an axis that one text means."""
    axes = list(dict.fromkeys(name for grid in grids.values() for name in grid.axes))
    if axis not in axes:
        raise FlSimError(f"The study has no axis '{axis}' for --only.{did_you_mean(axis, axes)}")
    labels = dict.fromkeys(
        cell.labels[axis] for grid in grids.values() for cell in grid.cells if axis in cell.labels
    )
    if label in labels:
        return {label}
    found = {name for name in labels if name.startswith(f"{label}, ")}
    if not found:
        raise FlSimError(
            f"The study's axis '{axis}' has no value '{label}'.{did_you_mean(label, [*labels])}"
        )
    return found


def _of_other_files(
    rows: "pd.DataFrame",
    asked: Mapping[str, Grid],
    known: Known,
    data_roots: "Mapping[str, Path | None]",
) -> dict[str, str]:
    """Return the cells that were measured on other data files than those that are here, and why."""
    from fl_sim.data import load_dataset

    kept = dict(zip(rows[CELL], rows["data"], strict=True))
    here: dict[str, str | None] = {}
    found = {}
    for part, grid in asked.items():
        for cell in grid.cells:
            dataset = cell.scenario.dataset
            key = dataset.model_dump_json()
            if cell.name not in kept:
                continue
            if key not in here:
                try:
                    files = load_dataset(dataset.name, dataset.settings, data_roots.get(part)).files
                    here[key] = data_word(file.sha256 for file in files)
                except FlSimError:  # nothing has to be run where all is kept
                    here[key] = None
            if here[key] not in (None, kept[cell.name]):
                found[cell.name] = f"its data file ({kept[cell.name]}) is not the one that is here"
    return found
