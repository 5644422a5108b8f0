"""The ServerApp of ``flwr run`` and ``fl-sim deploy``: a federated scenario on Flower's hospitals.

Settings, with ``flwr run . -c 'key="value"'``: ``scenario`` (absolute path of a TOML file, or the
name of one that comes along; the demo by default), ``data-root`` and ``out`` (absolute paths, since
Flower runs a copy of the code in another folder).
"""

import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_sim.errors import FlSimError

CONNECTING_SECONDS = 60

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run's settings name."""
    try:
        _run(grid, context)
    except FlSimError as error:
        # Flower logs the traceback of what is raised here; the sentence is all that helps.
        raise FlSimError(str(error)) from None


def _run(grid: Grid, context: Context) -> None:
    from experiments.cli.run import find_scenario
    from experiments.run.preflight import remarks
    from experiments.run.scenario import Scenario
    from experiments.run.start import default_folder, run
    from experiments.tables.console import make_console, plain, print_result
    from fl_sim.bars import Lines
    from fl_sim.case import open_case
    from fl_sim.data import data_root
    from fl_sim.engine.through import DeployedGrid

    settings = context.run_config
    scenario = Scenario.from_toml(find_scenario(str(settings.get("scenario") or "demo-federated")))
    if scenario.federation is None:
        raise FlSimError('flwr run needs a scenario with mode = "federated".')
    _wait_for_nodes(grid, scenario.federation.hospitals)
    out = str(settings.get("out") or Path.home() / "fl-sim" / default_folder(scenario))
    root = str(settings.get("data-root") or "") or None
    console = make_console()
    case = open_case(scenario.case, data_root(Path(root) if root else None))
    for remark in remarks(scenario, case):
        console.print(plain(remark), soft_wrap=True)
    print_result(console, run(scenario, out, root, Lines(), DeployedGrid(grid)))


def _wait_for_nodes(grid: Grid, hospitals: int) -> None:
    """Give the SuperNodes time to connect, and say so if there are too few of them."""
    for _ in range(CONNECTING_SECONDS):
        nodes = len(list(grid.get_node_ids()))
        if nodes >= hospitals:
            return
        time.sleep(1)
    raise FlSimError(
        f"The scenario has {hospitals} hospitals, but {nodes} SuperNodes are connected; start "
        f"the others, or simulate with --federation-config 'num-supernodes={hospitals}'."
    )
