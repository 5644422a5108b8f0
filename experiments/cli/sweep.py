"""The command line of sweeps: ``fl-sim sweep``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from experiments.cli.program import complete_grids

if TYPE_CHECKING:
    from experiments.sweep.start import SweepResult

FAILED = 1
LOG_WIDTH = 160

# Options of everything that is a sweep.
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder of data files; otherwise FL_SIM_DATA, then medmnist's own folder.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Cells at a time; otherwise one for each core. 0: in this process, without Ray.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="A running Ray cluster whose machines share the folders.",
        show_default=False,
    ),
]
GpusPerCell = Annotated[
    float, typer.Option("--gpus-per-cell", min=0.0, help="GPUs, or a fraction, for each cell.")
]


def sweep(
    grid: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a grid that comes with fl-sim (see fl-sim list).",
            autocompletion=complete_grids,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key of every cell, for example --set training.epochs=2, or "
            "--set 'seeds=[0, 1]'; repeatable.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the sweep; otherwise runs/<grid>.", show_default=False
        ),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    gpus_per_cell: GpusPerCell = 0.0,
) -> None:
    """Run every cell of a grid of scenarios, side by side, and summarise them over seeds.

    Killed at any moment, the same command continues. Writes table.csv and table.parquet (the long
    table over all cells), summary.csv, .md and .tex, failed.csv if cells failed, cells/ (the runs)
    and shared/ (trained networks that several cells start from). Exit code 1 if cells failed.
    """
    from fl_sim.glance import at_a_glance

    device = "auto" if gpus_per_cell > 0 else "cpu"
    options: dict[str, Any] = {"overrides": overrides or (), "device": device}
    # What is wrong in the grid is said before torch is imported.
    at_a_glance("experiments.sweep.grid", "Grid", lambda kind: kind.of(grid, **options))
    from experiments.sweep.grid import Grid
    from experiments.sweep.start import sweep as run_sweep
    from experiments.tables.console import make_console, plain
    from fl_sim.bars import make_progress

    console = make_console()
    cells = Grid.of(grid, **options)
    seeds = len({cell.scenario.seed for cell in cells.cells})
    console.print(
        f"[bold]{plain(cells.name)}[/bold]: {len(cells.cells)} cells, {seeds} seeds of each"
    )
    if cells.repeated:
        console.print(f"{cells.repeated} cells would repeat another one and are left out.")
    progress = make_progress(console, remaining=False)
    result = run_sweep(
        cells, out, workers, ray_address, data_root, gpus_per_cell=gpus_per_cell, progress=progress
    )
    _print(console, result)
    if len(result.failed):
        raise typer.Exit(FAILED)


def _print(console: Console, result: "SweepResult") -> None:
    from experiments.tables.console import headed, make_console, plain, print_table

    failed = result.failed
    if len(failed) < len(result.grid.cells):
        title = "At release: mean over n seeds, and half of its 95 % confidence interval"
        # A log or a pipe has no width that numbers would have to be cut for.
        wide = console if console.is_terminal else make_console(width=LOG_WIDTH)
        print_table(wide, headed(result.released()), title)
        console.print(f"Table   {plain(result.out / 'table.csv')}")
        console.print(f"Summary {plain(result.out / 'summary.csv')}, .md, .tex")
    shared = result.out / "shared"
    if shared.exists():
        size = sum(f.stat().st_size for f in shared.rglob("*") if f.is_file()) / 1e6
        console.print(f"Shared  {plain(shared)} ({size:.0f} MB; needed only to add cells)")
    for _, row in failed.iterrows():
        console.print(f"Failed  {plain(row['cell'])}: {plain(row['error'])}", soft_wrap=True)
    if len(failed):
        console.print(
            f"{len(failed)} of {len(result.grid.cells)} cells failed; the same command "
            f"tries them again. List: {plain(result.out / 'failed.csv')}"
        )
