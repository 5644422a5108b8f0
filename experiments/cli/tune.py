"""The command line of tuning: ``fl-sim tune``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from experiments.cli.program import complete_tunings
from experiments.cli.sweep import (
    FAILED,
    LOG_WIDTH,
    DataRoot,
    GpusPerCell,
    RayAddress,
    Workers,
)

if TYPE_CHECKING:
    from experiments.tuning.start import Tuning

TITLE = (
    "At release. validation: the part of the held-out images; test: mean over the report's seeds, "
    "and half of its 95 % confidence interval"
)


def tune(
    tuning: Annotated[
        str,
        typer.Argument(
            metavar="GRID",
            help="A TOML file, or the name of a tuning file that comes with fl-sim (see fl-sim "
            "list tuning).",
            autocompletion=complete_tunings,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key of the file, for example --set budget=3 or --set "
            "'final.seeds=[0]', or of every cell: --set training.epochs=2; repeatable.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the tuning; otherwise runs/<grid>.", show_default=False
        ),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    gpus_per_cell: GpusPerCell = 0.0,
    final: Annotated[
        bool,
        typer.Option(
            "--final/--no-final",
            help="Run the chosen and the default settings on the test set in the end, once.",
        ),
    ] = True,
) -> None:
    """Choose the settings of defences away from the test set, by a rule stated before.

    Every defence gets the same number of settings, its defaults first. They are tried with seeds of
    their own, so on other stolen images than those of the report, and utility is measured on a part
    of the held-out images that no defence sees. Then each defence is run at its chosen and at its
    default settings on the test set, once: a folder whose final sweep has begun takes no other
    tuning.

    Killed at any moment, the same command continues. Writes trials/ and final/ (sweeps),
    trials.csv (every setting tried, seed by seed), trials.png, chosen.json (what was chosen and
    why), chosen.toml (a grid of it, for fl-sim sweep) and tuned.csv. Exit code 1 if cells of final/
    failed; a setting of which a trial failed, since it diverged for example, is not chosen.
    """
    from fl_sim.glance import at_a_glance

    options: dict[str, Any] = {
        "overrides": overrides or (),
        "device": "auto" if gpus_per_cell > 0 else "cpu",
    }
    # What is wrong in the file is said before torch is imported.
    at_a_glance("experiments.tuning.plan", "Plan", lambda kind: kind.of(tuning, **options))
    from experiments.tables.console import make_console, plain
    from experiments.tuning.plan import Plan
    from experiments.tuning.start import tune as run_tuning
    from fl_sim.bars import make_progress

    console = make_console()
    plan = Plan.of(tuning, **options)
    console.print(
        f"[bold]{plain(plan.name)}[/bold]: {len(plan.components)} defences, {plan.file.budget} "
        f"settings of each ({plan.file.search}), {len(plan.grid.cells)} trials; rule: "
        f"{plan.file.rule}"
    )
    result = run_tuning(
        plan,
        out,
        workers,
        ray_address,
        data_root,
        gpus_per_cell=gpus_per_cell,
        final=final,
        progress=make_progress(console, remaining=False),
    )
    _print(console, result)
    if result.reported and len(result.final_sweep.failed):
        raise typer.Exit(FAILED)


def _print(console: Console, result: "Tuning") -> None:
    from experiments.tables.console import make_console, plain, print_table

    # A log or a pipe has no width that numbers would have to be cut for.
    wide = console if console.is_terminal else make_console(width=LOG_WIDTH)
    table = result.in_short()
    print_table(wide, table.drop(columns="settings"), TITLE)
    console.print(plain(result.rule), soft_wrap=True)
    said = table.drop_duplicates(["defense", "choice"]).set_index(["defense", "choice"])["settings"]
    for label, one in result.choices.chosen.items():
        tuned = said.get((label, "tuned"), "its default settings")
        console.print(f"{plain(label)}: {plain(tuned)}; {plain(one.why)}.", soft_wrap=True)
    if not result.reported:
        console.print("The test set is closed; the same command without --no-final opens it, once.")
    console.print(f"Trials {plain(result.out / 'trials.csv')}, .png")
    console.print(f"Chosen {plain(result.out / 'chosen.toml')}, .json")
    console.print(f"Table  {plain(result.out / 'tuned.csv')}")
    failed = result.failed
    for _, row in failed.iterrows():
        console.print(f"Failed {plain(row['cell'])}: {plain(row['error'])}", soft_wrap=True)
    if len(failed):
        console.print(f"{len(failed)} cells failed; a setting with a failed trial is not chosen.")
