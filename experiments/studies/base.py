"""What a study is, and what those share that are a grid, a table and a figure.

A study is a folder beside this file: its ``__init__.py`` registers it in :data:`STUDIES`, and its
results and its page lie with it. ``fl-sim study NAME`` runs it.

One that is a :class:`GridStudy` says which cells there are (``grid``), what of the sweep's long
table its own table shows (``tabulate``) and how that is drawn (``draw``). Running, sharing and
resuming is the sweep's. Beside the table ``<name>.csv`` lies ``<name>.json``: where its numbers
come from.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.studies.published_tables import PublishedTable
from experiments.sweep.start import SweepResult, sweep
from experiments.tables.console import headed, make_console, plain, print_table
from experiments.tables.summary import labels_of, wide
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import measured_on_images
from fl_sim.progress import SILENT, Progress
from fl_sim.registry import Registry
from fl_sim.words import RAW, STRONGEST

if TYPE_CHECKING:
    import pandas as pd

Values = dict[str, Any]

SKIN: Values = {"mode": "centralized", "dataset": "dermamnist"}
"""Skin images in a data lake, the case of most studies."""
STEPS_OF_PAPER: Values = {"epochs": 6.5}
"""Training as in the scenario ``centralized-dermamnist``."""

NONE: Values = {"label": "none", "value": "none"}
VANILLA: Values = {"label": "vanilla fine-tuning", "name": "fine_tuning"}
HIGH_RATE: Values = {"label": "high-rate fine-tuning", "name": "high_rate_fine_tuning"}
SUPER: Values = {"label": "Super-Fine-Tuning", "name": "super_fine_tuning"}
LWLRD: Values = {"label": "LWLRD", "name": "lwlrd"}
FISHER_NOISE: Values = {"label": "Fisher noise", "name": "fisher_noise"}
DISTILLATION: Values = {"label": "consistent distillation", "name": "consistent_distillation"}
ANSWERS: Values = {
    "label": "consistent distillation, answers only",
    "name": "consistent_distillation",
    "labels": 0.0,
}
ALONE: Values = {
    "label": "from scratch, same views",
    "name": "consistent_distillation",
    "labels": 1.0,
    "start": "fresh",
}
"""A control of distillation: as many steps on the same views, with labels and no teacher. On the
held-out images alone; trusted training on all images that the owner has is still missing."""

SCRATCH = "auc_scratch"
UTILITY = ("auc", SCRATCH)

Out = Annotated[Path, typer.Option(help="Folder of the study.")]
Full = Annotated[bool, typer.Option("--full", help="The whole study: for a GPU or many cores.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of data files.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Cells at a time; one a core by default. 0: in this process."),
]
Gpus = Annotated[float, typer.Option(min=0.0, help="GPUs, or a fraction of one, for each cell.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of every cell, or the seeds: --set 'seeds=[0]'; repeatable.",
    ),
]


@dataclass(frozen=True)
class How:
    """How cells are run; see :func:`experiments.sweep.start.sweep`.

    Args:
        data_root, workers, gpus_per_cell, overrides, progress: of every sweep.
        data_roots: of single grids, by their name, where it is another one.
    """

    data_root: Path | None = None
    workers: int | None = None
    gpus_per_cell: float = 0.0
    overrides: Sequence[str] = ()
    data_roots: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = SILENT


@dataclass(frozen=True)
class Study:
    """A study, as it is registered.

    Args:
        commands: what it does: a function whose arguments are options, as typer reads them, or
            several by name.
        tables: what pages show of its results, by name; see
            :mod:`experiments.studies.published`.
    """

    commands: Callable[..., None] | Mapping[str, Callable[..., None]]
    tables: Mapping[str, PublishedTable] = field(default_factory=dict)


STUDIES: Registry[Study] = Registry("study", "experiments.studies")


@dataclass(frozen=True)
class GridStudy:
    """A study by sweeps.

    Args:
        name: of its table, its figure and its folder.
        title: above the table and the figure.
        tabulate: the study's table from the long table of its sweeps.
        draw: draws that table into a PNG file.
    """

    name: str
    title: str
    tabulate: Callable[["pd.DataFrame"], "pd.DataFrame"]
    draw: Callable[[Path, "pd.DataFrame", str], Path]

    def run(self, grids: Mapping[str, Values], out: Path, how: How | None = None) -> "pd.DataFrame":
        """Run the grids, one after another, and write table, figure and provenance.

        Args:
            grids: by the name of the folder that each one's cells are in.
            out: folder of the study.
            how: cells are run.

        Returns:
            The study's table.

        Raises:
            FlSimError: if a grid is wrong, or cells failed; the table then has the others.
        """
        import pandas as pd

        from experiments.tables.figures import write_table

        how = how or How()
        results = [
            sweep(
                grid,
                out / part,
                how.workers,
                data_root=how.data_roots.get(part, how.data_root),
                overrides=how.overrides,
                gpus_per_cell=how.gpus_per_cell,
                progress=how.progress,
            )
            for part, grid in grids.items()
        ]
        failed = pd.concat([result.failed for result in results])
        if len(failed) == sum(len(result.grid.cells) for result in results):
            raise FlSimError(f"All cells of the study failed; the first: {failed['error'].iloc[0]}")
        long = pd.concat([result.table for result in results if _any_ended(result)])
        table = self.tabulate(long.reset_index(drop=True))
        write_table(out / f"{self.name}.csv", table)
        origin = provenance({r.out: [cell.name for cell in r.grid.cells] for r in results})
        content = json.dumps({"study": self.name, **origin}, indent=2) + "\n"
        write_atomically(out / f"{self.name}.json", content.encode())
        self.draw(out / f"{self.name}.png", table, self.title)
        if len(failed):
            raise _failed(len(failed), str(failed["error"].iloc[0]))
        return table

    def show(self, grids: Mapping[str, Values], out: Path, how: How) -> None:
        """Do what :meth:`run` does on a terminal, and print the table."""
        from fl_sim.bars import make_progress

        console = make_console()
        progress = make_progress(console, remaining=False)
        table = self.run(grids, out, replace(how, progress=progress))
        print_table(console, table, self.title)
        console.print(f"Table, figure and provenance: {plain(out / self.name)}.csv, .png, .json")

    def command(self, cells: Callable[[bool], Values]) -> Callable[..., None]:
        """Return the command of a study of one grid, with the options of all studies.

        Args:
            cells: ``cells(full)`` gives the grid, small or whole; its docstring is the help text.
        """
        folder = Path("runs") / self.name.replace("_", "-")

        def command(
            out: Out = folder,
            full: Full = False,
            data_root: DataRoot = None,
            workers: Workers = None,
            gpus_per_cell: Gpus = 0.0,
            changes: Changes = None,
        ) -> None:
            how = How(data_root, workers, gpus_per_cell, changes or ())
            self.show({"cells": cells(full)}, out, how)

        command.__doc__ = cells.__doc__
        return command


def swept(grid: str) -> Callable[..., None]:
    """Return the command of a study that is a sweep of a grid file beside it, and its summary.

    Args:
        grid: the file's name without ``.toml``.
    """

    def command(
        out: Out = Path("runs") / grid,
        data_root: DataRoot = None,
        workers: Workers = None,
        gpus_per_cell: Gpus = 0.0,
        changes: Changes = None,
    ) -> None:
        result = sweep(
            grid,
            out,
            workers,
            data_root=data_root,
            overrides=changes or (),
            gpus_per_cell=gpus_per_cell,
        )
        if len(result.failed):
            raise _failed(len(result.failed), str(result.failed["error"].iloc[0]))
        console = make_console()
        print_table(console, headed(result.released()), grid)
        console.print(f"Table: {plain(out / 'summary.csv')}")

    command.__doc__ = f"Sweep the grid {grid}: what 'fl-sim show {grid}' shows."
    return command


def transpose(images: int, **settings: Any) -> Values:
    """Return Transpose as a labelled value of an axis."""
    return {"label": f"Transpose, {images}", "name": "transpose", "images": images, **settings}


def dec(images: int | str) -> Values:
    """Return lossless codes in the 16 low bits of every weight as a labelled value of an axis."""
    carrier = {"name": "lsb", "bits": 16}
    settings = {"name": "dec", "images": images, "codec": "png", "carrier": carrier}
    return {"label": f"DEC, {images}", **settings}


def settings_of(value: Mapping[str, Any]) -> Values:
    """Return a labelled value of an axis without its label, as a scenario has it."""
    return {key: inner for key, inner in value.items() if key != "label"}


def leak_columns() -> list[str]:
    """Return the columns of leaks in studies' tables: each metric and its floor, as declared."""
    metrics = [(name, about) for name, about in measured_on_images() if not about.numbered]
    values = [f"{name} {how}" for name, about in metrics
              for how in ((RAW, STRONGEST) if about.raw else (STRONGEST,))]  # fmt: skip
    floors = [floor for name, about in metrics for floor in about.floors[:1]
              if floor.startswith(name)]  # fmt: skip
    return values + floors


def by_seed(
    table: "pd.DataFrame", metrics: Iterable[str], stages: Sequence[str] | None = None
) -> "pd.DataFrame":
    """Return a row a cell, seed and stage: the grid's labels, ``seed``, ``stage``, the metrics.

    Args:
        table: a sweep's long table.
        metrics: columns as :func:`experiments.tables.summary.wide` names them; ``"auc_scratch"``
            is the floor of AUC. One that was not measured is empty.
        stages: by default all.
    """
    frame = wide(table).rename(columns={"auc_floor_scratch": SCRATCH})
    if SCRATCH in frame:
        # Measured at release; it is the same for every stage of a cell.
        frame[SCRATCH] = frame.groupby("cell")[SCRATCH].transform("max")
    if stages is not None:
        frame = frame[frame["stage"].isin(stages)]
    columns = [*labels_of(table), "seed", "stage", *metrics]
    return frame.reindex(columns=columns).reset_index(drop=True)


def split_label(frame: "pd.DataFrame", axis: str, names: Sequence[str]) -> "pd.DataFrame":
    """Return a table with an axis whose labels are ``"a, b"`` as columns of their own.

    Args:
        frame: with the column ``axis``.
        axis: what is replaced.
        names: of the columns; a label with fewer parts leaves the last ones empty.
    """
    parts = (
        frame[axis]
        .str.split(", ", n=len(names) - 1, expand=True)
        .reindex(columns=range(len(names)))
    )
    place = list(frame.columns).index(axis)
    rest = frame.drop(columns=axis)
    for offset, name in enumerate(names):
        rest.insert(place + offset, name, parts[offset].fillna(""))
    return rest


def provenance(sweeps: Mapping[Path, Iterable[str]]) -> Values:
    """Return where the numbers of sweeps come from, of those cells that have ended.

    Args:
        sweeps: names of cells by folder of the sweep.

    Returns:
        ``cells`` and ``seeds``; ``scenarios``, the first cell of each sweep as run; ``data``, the
        files with their checksums and whether they are the official ones; ``versions`` and
        ``machines``; and ``cpu_seconds``.
    """
    runs: list[Values] = []
    scenarios, seconds = [], 0.0
    for folder, cells in sweeps.items():
        known = [
            json.loads((folder / "cells" / cell / "scenario.json").read_text(encoding="utf-8"))
            for cell in cells
            if (folder / "cells" / cell / "finished").exists()
        ]
        for path in (folder / "jobs").glob("*.json"):
            seconds += json.loads(path.read_text(encoding="utf-8"))["cpu"]
        scenarios += [known[0]["scenario"]] if known else []
        runs += known
    return {
        "cells": len(runs),
        "seeds": sorted({run["scenario"]["seed"] for run in runs}),
        "scenarios": scenarios,
        "data": _different(file for run in runs for file in run["data"]),
        "versions": _different(run["versions"] for run in runs),
        "machines": _different(run["machine"] for run in runs),
        "cpu_seconds": round(seconds),
    }


def _different(values: Iterable[Values]) -> list[Values]:
    """Return values without repetitions, in their order."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())


def _any_ended(result: SweepResult) -> bool:
    return len(result.failed) < len(result.grid.cells)


def _failed(cells: int, first: str) -> FlSimError:
    return FlSimError(
        f"{cells} cells failed, and the same command tries them again; the first: {first}"
    )
