"""Run a scenario, from Python or from the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.claim import claimed
from experiments.run.result import Result
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from experiments.run.shipped import find
from experiments.run.standing import sweep_run
from fl_sim.bars import chosen_progress
from fl_sim.data import data_root as find_data_root
from fl_sim.progress import Progress

if TYPE_CHECKING:
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy


def run(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    out: Path | str | None = None,
    data_root: Path | str | None = None,
    progress: Progress | bool | None = None,
    grid: "Grid | None" = None,
    trained: Path | str | None = None,
    strategy: "Strategy | None" = None,
) -> Result:
    """Run a scenario to its end.

    A run that was interrupted continues; one that had ended is not run again; where another process
    runs it in the same folder, this waits for that one's end. The same scenario gives the same
    table on the same machine, bit for bit except ``seconds``.

    Args:
        scenario: a scenario, its keys and values, the path of a TOML file, or the name of a
            scenario that comes along, such as ``"demo-centralized"``.
        out: folder of the run; by default ``runs/<scenario>-seed<seed>``.
        data_root: folder of data files; by default ``FL_SIM_DATA``, then medmnist's own place.
        progress: where long work reports. By default bars on a terminal and in a notebook, plain
            lines on ``sys.stderr`` elsewhere; ``False`` for none; or an object of one's own, see
            :func:`fl_sim.bars.chosen_progress`.
        grid: a Flower grid with the hospitals of a federation, where there is one already.
        trained: folder of a centralized run that differs in its defence only; its trained and
            attacked model is taken, not trained anew.
        strategy: a Flower strategy that aggregates a federation's uploads, instead of the one
            that the scenario names; rows call it by its class's name.

    Returns:
        The table, the recovered images and the files.

    Raises:
        FlSimError: one sentence, if anything about the scenario or its data is wrong.
    """
    reports_to = chosen_progress(progress)
    if isinstance(scenario, str | Path):
        scenario = Scenario.from_toml(find(str(scenario), "scenario"))
    elif not isinstance(scenario, Scenario):
        scenario = Scenario.from_mapping(scenario)
    if strategy is not None:
        from experiments.run.stated_strategy import with_strategy

        scenario = with_strategy(scenario, strategy)
    root = find_data_root(Path(data_root) if data_root is not None else None)
    folder = Path(out) if out is not None else default_folder(scenario)
    with claimed(folder, f"{scenario.identity}, seed {scenario.seed}"):
        sweep_run(folder)
        this = Run(scenario, folder, root, reports_to)
        if not this.folder.finished:
            _work_off(this, grid, Path(trained) if trained is not None else None, strategy)
            this.folder.finish()
        this.folder.tidy()
    return Result(scenario, folder)


def _work_off(
    run: Run, grid: "Grid | None", trained: Path | None, strategy: "Strategy | None"
) -> None:
    if trained is not None:
        from experiments.run.adopt import adopt_trained

        adopt_trained(run, trained)
    if run.scenario.federation is None:
        from experiments.run.centralized import run_centralized

        run_centralized(run)
    else:
        # Flower costs seconds to import, which a centralized run does not pay.
        from experiments.run.federated import run_federated

        run_federated(run, grid, strategy)


def default_folder(scenario: Scenario) -> Path:
    """Return ``runs/<scenario>-seed<seed>`` under the working directory."""
    return Path("runs") / f"{scenario.identity}-seed{scenario.seed}"
