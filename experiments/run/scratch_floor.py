"""The floor of utility: the same network trained from scratch on the held-out set alone.

A defence that keeps less than this has protected nothing worth having. It depends on the data, the
network and its training only, so it is computed once and cached.
"""

import json
from typing import Any

from experiments.run.identity import digest_of, floor, made_here
from experiments.run.owner import DEFAULT_THREADS
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from fl_sim.data.cache import cache_folder
from fl_sim.errors import FlSimError
from fl_sim.files import built_once, write_atomically
from fl_sim.models import build
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, TrainingSettings, train


def scratch_floor(run: Run) -> dict[str, float]:
    """Return utility metrics of a fresh network trained on the held-out set.

    It is trained as the scenario trains, for ``[measure] scratch_epochs`` passes over the held-out
    set; an empty dictionary where that is 0. A second process that asks waits for the first.
    """
    if run.scenario.measure.scratch_epochs == 0:
        return {}
    files = [file.sha256 for file in run.case.files]
    ingredients = floor_ingredients(run.scenario, files, run.owner.device)
    path = cache_folder() / "scratch-floors" / f"{digest_of(ingredients)[:32]}.json"
    with built_once(path):
        if not path.exists():
            content = {"ingredients": ingredients, "utility": _train_from_scratch(run)}
            write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    try:
        known = json.loads(path.read_bytes())["utility"]
        return {str(metric): float(value) for metric, value in known.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FlSimError(
            f"The cached floor {path} is damaged; delete that file, and it is made anew."
        ) from None


def floor_ingredients(scenario: Scenario, files: list[str], device: str) -> dict[str, Any]:
    """Return everything that the floor depends on.

    Args:
        scenario: whose floor it is.
        files: SHA-256 of its data files.
        device: where it is computed.
    """
    threads = scenario.threads or DEFAULT_THREADS
    return {**floor(scenario), **made_here(scenario, files, device), "threads": threads}


def _training(scenario: Scenario) -> TrainingSettings:
    epochs = float(scenario.measure.scratch_epochs)
    # Not privately, as defences are not either.
    return scenario.training.model_copy(update={"epochs": epochs, "dp": None})


def _train_from_scratch(run: Run) -> dict[str, float]:
    with run.owner.threads():
        model = build(run.case.spec, run.scenario.seed + 1).to(run.owner.device)
        train(
            LocalTraining(
                model=model,
                spec=run.case.spec,
                data=run.case.held_out,
                task=run.case.task,
                settings=_training(run.scenario),
                stream=Stream(run.scenario.seed, ("scratch floor",)),
                progress=run.progress,
            )
        )
        return run.owner.utility(model)


def record_scratch_floor(run: Run, server_round: int) -> None:
    """Append the floor of each utility metric to a release's rows."""
    floor = scratch_floor(run)
    values = {f"{metric}_floor_scratch": value for metric, value in floor.items()}
    if values:
        run.folder.record_values(server_round, "release", **values)
