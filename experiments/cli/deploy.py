"""The command line of a trial federation: ``fl-sim deploy``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.model_file import DataRoot
from experiments.cli.program import complete_scenarios
from experiments.cli.run import Changes, Out, find_scenario

Hospitals = Annotated[
    int | None,
    typer.Option(
        help="How many hospitals; otherwise the scenario's [federation] hospitals.",
        show_default=False,
        min=1,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Port of the SuperLink; otherwise any that is free.",
        show_default=False,
        min=1,
        max=65535,
    ),
]


def deploy(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a scenario that comes with fl-sim (see fl-sim list).",
            autocompletion=complete_scenarios,
        ),
    ],
    hospitals: Hospitals = None,
    overrides: Changes = None,
    data_root: DataRoot = None,
    out: Out = None,
    port: Port = None,
) -> None:
    """Run a federated scenario on Flower's deployment runtime, as a trial on this machine.

    Starts a SuperLink and a SuperNode for each hospital, processes of their own that speak TLS and
    know each other by keys made for this run, runs the scenario on them, and stops them whatever
    happens. Writes what fl-sim run writes, with the same table, and logs/. For a federation on
    several machines see the documentation: A real federation.
    """
    from fl_sim.glance import at_a_glance

    path = find_scenario(scenario)
    changes = [*(overrides or ())]
    if hospitals is not None:
        changes.append(f"federation.hospitals={hospitals}")
    at_a_glance("experiments.run.scenario", "Scenario", lambda s: s.from_toml(path, changes))
    run_deployed(path, changes, data_root, out, port)


def run_deployed(
    path: Path, overrides: list[str], root: Path | None, out: Path | None, port: int | None
) -> None:
    """Run a scenario on a SuperLink and SuperNodes of this machine.

    Args:
        path: of the scenario.
        overrides: ``"key=value"`` with dotted keys.
        root: folder of data files.
        out: folder of the run.
        port: of the SuperLink; any free one where not given.

    Raises:
        FlSimError: if the scenario is no federation, or anything about the federation fails.
    """
    from clients.app import DATA_ROOT
    from experiments.run.deployed_app import APP
    from experiments.run.scenario import Scenario
    from experiments.run.start import default_folder
    from experiments.tables.console import make_console, plain
    from fl_sim.data import data_root
    from fl_sim.engine.deployed import deployment
    from fl_sim.errors import FlSimError

    parsed = Scenario.from_toml(path, overrides)
    if parsed.federation is None:
        raise FlSimError('fl-sim deploy needs a scenario with mode = "federated".')
    console = make_console()
    console.print(f"[bold]{plain(parsed.identity)}[/bold], seed {parsed.seed}", soft_wrap=True)
    folder = (out or default_folder(parsed)).absolute()
    data = data_root(root)
    config: dict[str, Any] = {"out": str(folder)}
    node_config: dict[str, Any] = {"num-partitions": parsed.federation.hospitals}
    if data is not None:
        config["data-root"] = node_config[DATA_ROOT] = str(data.absolute())
    with deployment(folder, port) as made:
        config["scenario"] = str(_stated(made.folder / "scenario.toml", path, overrides))
        made.start_superlink()
        print(f"The SuperLink is at {made.address}:{made.port}.", flush=True)
        for hospital in range(parsed.federation.hospitals):
            made.add_hospital(hospital, {"partition-id": hospital, **node_config})
        made.wait_for_hospitals()
        print(f"{len(made.nodes)} hospitals are connected.", flush=True)
        made.run(APP, config, lambda line: print(line, flush=True))


def _stated(file: Path, path: Path, overrides: list[str]) -> Path:
    """Write a scenario with its overrides, for the ServerApp to read."""
    import tomli_w

    from experiments.run.toml_file import read_toml
    from fl_sim.overrides import apply_override

    values = read_toml(path, "scenario")
    for override in overrides:
        apply_override(values, override)
    file.write_text(tomli_w.dumps(values))
    return file
