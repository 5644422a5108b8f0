"""The floor of utility: the same network trained from scratch on the held-out set alone.

A defence that keeps less than this has protected nothing worth having. It depends on the data, the
network and its training only, so it is computed once and cached.
"""

import hashlib
import json

import torch

from experiments.study import DEFAULT_THREADS, Study
from fl_sim import __version__
from fl_sim.artifact import write_atomically
from fl_sim.data.cache import cache_folder
from fl_sim.models import build
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, train


def scratch_floor(study: Study) -> dict[str, float]:
    """Return utility metrics of a fresh network trained on the held-out set.

    It is trained as the scenario trains (but not privately, as defences are not), for ``[measure]
    scratch_epochs`` passes over the held-out set; an empty dictionary where that is 0.
    """
    scenario = study.scenario
    if scenario.measure.scratch_epochs == 0:
        return {}
    training = scenario.training.model_copy(
        update={"epochs": float(scenario.measure.scratch_epochs), "dp": None}
    )
    ingredients = {
        "case": scenario.case.model_dump(mode="json"),
        "files": [file.sha256 for file in study.case.files],
        "training": training.model_dump(mode="json"),
        "versions": [__version__, torch.__version__],
        "threads": scenario.threads or DEFAULT_THREADS,
        "device": study.device,
    }
    digest = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "scratch-floors" / f"{digest[:32]}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8"))["utility"])
    with study.threads():
        model = build(study.case.spec, scenario.seed + 1).to(study.device)
        train(
            LocalTraining(
                model=model,
                spec=study.case.spec,
                data=study.case.held_out,
                task=study.case.task,
                settings=training,
                stream=Stream(scenario.seed, ("scratch floor",)),
                progress=study.progress,
            )
        )
        values = study.utility(model)
    content = {"ingredients": ingredients, "utility": values}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    return values


def record_scratch_floor(study: Study, server_round: int) -> None:
    """Append the floor of each utility metric to a release's rows."""
    floor = scratch_floor(study)
    values = {f"{metric}_floor_scratch": value for metric, value in floor.items()}
    if values:
        study.record_values(server_round, "release", **values)
