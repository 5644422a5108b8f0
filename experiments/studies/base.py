"""What a study is, and what those share that are a grid, a table and a figure.

A study is a folder beside this file: its ``__init__.py`` registers it in :data:`STUDIES`, and its
results and its page lie with it. ``fl-sim study NAME`` runs it.

One that is a :class:`GridStudy` says which cells there are (``grid``), what of the sweep's long
table its own table shows (``tabulate``) and how that is drawn (``draw``). Running, sharing and
resuming is the sweep's. Its rows by seed are kept in ``rows.csv`` (see
:mod:`experiments.studies.rows`), from which the table is made, so that a study is extended over
days and machines. Beside the table ``<name>.csv`` lies ``<name>.json``: where its numbers come
from.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.run.shipped import find
from experiments.run.toml_file import read_toml
from experiments.studies.origin import counted, joined, provenance, read_origin, settings_changed
from experiments.studies.plan import Plan, planned
from experiments.studies.published_tables import PublishedTable
from experiments.studies.rows import (
    ROWS,
    Known,
    long_of,
    merged,
    ordered,
    read_rows,
    rounded,
    rows_of,
    write_rows,
)
from experiments.sweep.grid import Grid
from experiments.sweep.start import sweep
from experiments.tables.console import headed, make_console, plain, print_table
from experiments.tables.summary import labels_of, presented, summarise, wide
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import columns_shown, measured_on_images
from fl_sim.progress import SILENT, Progress
from fl_sim.registry import Registry
from fl_sim.words import RAW, STRONGEST

if TYPE_CHECKING:
    import pandas as pd

Values = dict[str, Any]
Draw = Callable[[Path, "pd.DataFrame", str], Path]
"""Draws a table under a title into a PNG file."""

RESULTS = Path(__file__).parent
"""Folder of the studies' folders."""
STUDY_FILE = "study.json"
"""In the folder of a run of a study: which one, and what was changed."""

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
held-out images alone; trusted training, on all that the owner has, is a defence of that name."""

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

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="AXIS=LABEL",
        help="Run only the cells with this label, for example --only attack=Transpose; repeatable. "
        "The rows of the others are kept.",
    ),
]
Again = Annotated[
    bool,
    typer.Option(
        "--again", help="Run cells although their rows are kept; in a folder of its own (--out)."
    ),
]


@dataclass(frozen=True)
class How:
    """How cells are run; see :func:`experiments.sweep.start.sweep`.

    Args:
        data_root, workers, gpus_per_cell, overrides, progress: of every sweep.
        data_roots: of single grids, by their name, where it is another one.
        full: whether the grids are those of the whole study; it is noted.
        only: ``"axis=label"``: the cells that are run; see
            :func:`experiments.studies.plan.narrowed`.
        again: run cells although their rows are kept. What ended in the study's folder is not run
            twice; give another one.
        results: folder of the studies' folders, with the rows that are kept.
    """

    data_root: Path | None = None
    workers: int | None = None
    gpus_per_cell: float = 0.0
    overrides: Sequence[str] = ()
    data_roots: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = SILENT
    full: bool = False
    only: Sequence[str] = ()
    again: bool = False
    results: Path = RESULTS


@dataclass(frozen=True)
class Study:
    """A study, as it is registered.

    Args:
        commands: what it does: a function whose arguments are options, as typer reads them, or
            several by name.
        tables: what pages show of its results, by name; see
            :mod:`experiments.studies.published`.
        by_grids: of a study by sweeps, how its table is made of its rows.
        grids: its grids, small or whole (``grids(full)``), by the name of their folder.
    """

    commands: Callable[..., None] | Mapping[str, Callable[..., None]]
    tables: Mapping[str, PublishedTable] = field(default_factory=dict)
    by_grids: "GridStudy | None" = None
    grids: Callable[[bool], Mapping[str, Values]] | None = None

    def known(self, full: bool, overrides: Sequence[str]) -> Known:
        """Return the cells of its grids; of a study that has none, no cells."""
        grids = self.grids(full) if self.grids is not None else {}
        one_seed = [*settings_changed(overrides), "seeds=[0]"]
        return Known.of(Grid.of(values, overrides=one_seed) for values in grids.values())


STUDIES: Registry[Study] = Registry("study", "experiments.studies")


@dataclass(frozen=True)
class GridStudy:
    """A study by sweeps, whose rows are kept in :data:`experiments.studies.rows.ROWS`.

    Args:
        name: of its table, its figure and its folder.
        title: above the table and the figure.
        tabulate: the study's table from a long table, see
            :func:`experiments.studies.rows.long_of`.
        draw: draws that table into a PNG file; ``None`` for no figure.
        on_screen: what a terminal shows of that table; by default all.
        further: more tables from the long one, by the name of their file.
    """

    name: str
    title: str
    tabulate: Callable[["pd.DataFrame"], "pd.DataFrame"]
    draw: Draw | None = None
    on_screen: Callable[["pd.DataFrame"], "pd.DataFrame"] | None = None
    further: Mapping[str, Callable[["pd.DataFrame"], "pd.DataFrame"]] = field(default_factory=dict)

    def plan(self, grids: Mapping[str, Values], out: Path, how: How | None = None) -> Plan:
        """Return which cells have to be run, and the rows of those that do not.

        Args:
            grids: by the name of the folder that each one's cells are in.
            out: folder of the study.
            how: cells are run.

        Raises:
            FlSimError: if a grid or ``how.only`` is wrong.
        """
        how = how or How()
        rows = merged(read_rows(how.results / self.name / ROWS), read_rows(out / ROWS))
        roots = {part: how.data_roots.get(part, how.data_root) for part in grids}
        device = "auto" if how.gpus_per_cell > 0 else "cpu"
        expanded = {
            part: Grid.of(values, overrides=how.overrides, device=device, name=self.name)
            for part, values in grids.items()
        }
        return planned(expanded, rows, how.only, how.again, roots)

    def run(self, grids: Mapping[str, Values], out: Path, how: How | None = None) -> "pd.DataFrame":
        """Run what has to be run of the grids, and write rows, table, figure and provenance.

        Args:
            grids: by the name of the folder that each one's cells are in.
            out: folder of the study.
            how: cells are run.

        Returns:
            The study's table, of what was run and what was kept.

        Raises:
            FlSimError: if a grid is wrong, or cells failed; the table then has the others.
        """
        how = how or How()
        return self.carry_out(self.plan(grids, out, how), out, how)

    def carry_out(self, plan: Plan, out: Path, how: How) -> "pd.DataFrame":
        """Run what is planned; see :meth:`run`."""
        import pandas as pd

        settings = {"study": self.name, "full": how.full, "set": settings_changed(how.overrides)}
        write_atomically(out / STUDY_FILE, (json.dumps(settings, indent=2) + "\n").encode())
        results = {
            part: sweep(
                grid,
                out / part,
                how.workers,
                data_root=how.data_roots.get(part, how.data_root),
                gpus_per_cell=how.gpus_per_cell,
                progress=how.progress,
            )
            for part, grid in plan.open.items()
            if grid.cells
        }
        failed = pd.concat([pd.DataFrame(), *(result.failed for result in results.values())])
        rows = plan.kept
        for part, grid in plan.asked.items():
            rows = merged(rows, rows_of(out / part, {c.name: c.labels for c in grid.cells}))
        if rows.empty:
            raise FlSimError(f"All cells of the study failed; the first: {failed['error'].iloc[0]}")
        sweeps = {out / part: [c.name for c in grid.cells] for part, grid in plan.asked.items()}
        kept = read_origin(how.results / self.name / f"{self.name}.json") if len(plan.kept) else {}
        origin = joined(kept, provenance(sweeps))
        table = self.write(out, ordered(rows, plan.known, relabel=True), {**settings, **origin})
        if len(failed):
            raise _failed(len(failed), str(failed["error"].iloc[0]))
        return table

    def write(self, folder: Path, rows: "pd.DataFrame", origin: Values) -> "pd.DataFrame":
        """Write rows, and the table, figure and provenance that are made of them.

        Args:
            folder: of the study.
            rows: in their order.
            origin: provenance, but for what the rows say themselves.

        Returns:
            The table.
        """
        from experiments.tables.figures import write_table

        write_rows(folder / ROWS, rows)
        tables = self.made_of(rounded(rows))
        for name, made in tables.items():
            write_table(folder / f"{name}.csv", made)
        table = tables[self.name]
        content = {**origin, **counted(rows, origin)}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / f"{self.name}.json", text.encode())
        if self.draw is not None:
            self.draw(folder / f"{self.name}.png", table, self.title)
        return table

    def made_of(self, rows: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
        """Return the tables that are made of rows, by the name of their file; its own first."""
        long = long_of(rows)
        makers = {self.name: self.tabulate, **self.further}
        return {name: make(long) for name, make in makers.items()}

    def show(self, grids: Mapping[str, Values], out: Path, how: How) -> None:
        """Do what :meth:`run` does on a terminal, and print the table."""
        from fl_sim.bars import make_progress

        console = make_console()
        plan = self.plan(grids, out, how)
        console.print(plain(str(plan)), soft_wrap=True)
        progress = make_progress(console, remaining=False)
        table = self.carry_out(plan, out, replace(how, progress=progress))
        print_table(console, self.on_screen(table) if self.on_screen else table, self.title)
        figure = ", .png" if self.draw is not None else ""
        console.print(
            f"Table, rows, provenance: {plain(out / self.name)}.csv, .json{figure}, {ROWS}"
        )

    def study(
        self,
        cells: Callable[[bool], Values],
        tables: Mapping[str, PublishedTable] | None = None,
        part: str = "cells",
        out: Path | None = None,
    ) -> Study:
        """Return the study of one grid, with the options of all studies.

        Args:
            cells: ``cells(full)`` gives the grid, small or whole; its docstring is the help text.
            tables: what pages show.
            part: folder of the cells in the study's folder.
            out: folder of the study where none is given.
        """
        folder = out or Path("runs") / self.name.replace("_", "-")

        def command(
            out: Out = folder,
            full: Full = False,
            data_root: DataRoot = None,
            workers: Workers = None,
            gpus_per_cell: Gpus = 0.0,
            changes: Changes = None,
            only: Only = None,
            again: Again = False,
        ) -> None:
            how = How(
                data_root,
                workers,
                gpus_per_cell,
                changes or (),
                full=full,
                only=only or (),
                again=again,
            )
            self.show({part: cells(full)}, out, how)

        command.__doc__ = cells.__doc__
        return Study(command, tables or {}, self, lambda full: {part: cells(full)})


def swept(
    name: str,
    grid: str,
    title: str,
    tables: Mapping[str, PublishedTable] | None = None,
    draw: Draw | None = None,
) -> Study:
    """Return the study that is a sweep of a grid file, and its means and intervals.

    Args:
        name: of the study.
        grid: the file's name without ``.toml``.
        title: above the table.
        tables: what pages show.
        draw: see :class:`GridStudy`.
    """

    def cells(full: bool) -> Values:
        values = read_toml(find(grid, "grid"), "grid")
        return values if not full else {**values, "seeds": list(range(5))}

    cells.__doc__ = f"""Sweep the grid {grid}: what 'fl-sim show {grid}' shows.

    --full: five seeds.
    """
    study = GridStudy(name, title, summarise, draw, on_screen=_released)
    # Its folder is the sweep's: 'fl-sim sweep' goes on with it, and the other way round.
    return study.study(cells, tables, part="", out=Path("runs") / grid)


def _released(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Return what a terminal shows of a sweep's means and intervals: those at release."""
    shown = columns_shown("sweep", summary["metric"])
    rows = summary[(summary["stage"] == "release") & summary["metric"].isin(shown)]
    return headed(presented(rows, short=True).drop(columns="stage"))


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
    values = [
        f"{name} {how}"
        for name, about in metrics
        for how in ((RAW, STRONGEST) if about.raw else (STRONGEST,))
    ]
    floors = [
        floor for name, about in metrics for floor in about.floors[:1] if floor.startswith(name)
    ]
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


def _failed(cells: int, first: str) -> FlSimError:
    return FlSimError(
        f"{cells} cells failed, and the same command tries them again; the first: {first}"
    )
