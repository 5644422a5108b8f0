"""The command line of one scenario: ``fl-sim run``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.model_file import DataRoot
from experiments.cli.program import complete_scenarios
from experiments.run.shipped import find

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for everything the run writes; otherwise runs/<scenario>-seed<seed>. A run "
        "that was interrupted continues in its folder.",
        show_default=False,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key, for example --set attack.images=32 --set seed=1; repeatable.",
        show_default=False,
    ),
]


def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a scenario that comes with fl-sim (see fl-sim list).",
            autocompletion=complete_scenarios,
        ),
    ],
    overrides: Changes = None,
    data_root: DataRoot = None,
    out: Out = None,
) -> None:
    """Run one scenario: train, attack, release, extract, measure.

    Writes results.csv and results.parquet (the long table), scenario.json (the scenario as run,
    versions, checksums), artifacts/ (the model files), keys/ (the attackers' keys) and images/
    (original and recovered images).
    """
    run_on_terminal(find_scenario(scenario), overrides or (), data_root, out)


def find_scenario(name: str) -> Path:
    """Return the path of a scenario file, or of a shipped one by its name.

    Raises:
        FlSimError: if there is neither; with the nearest name.
    """
    return find(name, "scenario")


def run_on_terminal(
    scenario: Path, overrides: tuple[str, ...] | list[str], root: Path | None, out: Path | None
) -> None:
    """Run a scenario and show how it goes and what it found."""
    from fl_sim.glance import at_a_glance

    # What is wrong in the scenario is said before torch is imported.
    at_a_glance("experiments.run.scenario", "Scenario", lambda s: s.from_toml(scenario, overrides))
    from experiments.run.preflight import remarks
    from experiments.run.scenario import Scenario
    from experiments.run.start import run as run_scenario
    from experiments.tables.console import make_console, plain, print_result
    from fl_sim.bars import make_progress
    from fl_sim.case import open_case
    from fl_sim.data import data_root

    console = make_console()
    parsed = Scenario.from_toml(scenario, overrides)
    console.print(f"[bold]{plain(parsed.identity)}[/bold], seed {parsed.seed}", soft_wrap=True)
    progress = make_progress(console)
    # The run opens the same case; a process loads it once.
    for remark in remarks(parsed, open_case(parsed.case, data_root(root), progress)):
        console.print(plain(remark), soft_wrap=True)
    result = run_scenario(parsed, out, root, progress)
    print_result(console, result)
