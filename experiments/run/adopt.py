"""Start a centralized run from another one's trained model: one attack, many defences."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.run.centralized import mark_trained
from experiments.run.identity import until_release
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from experiments.run.standing import TABLE, TRAINED, damaged, proven
from fl_sim.errors import FlSimError
from fl_sim.files import writing
from fl_sim.results import read_table

_COLUMNS = ("round", "stage", "extraction", "metric", "value")


def adopt_trained(run: Run, trained: Path) -> None:
    """Take up the model, and its measurements, that another run trained and attacked.

    Does nothing where the run has a trained model already.

    Args:
        run: a centralized run that has not begun.
        trained: folder of a run of the same scenario and seed but for its defence.

    Raises:
        FlSimError: if that run has not ended its training, or trained something else.
    """
    if (run.out / TRAINED).exists():
        return
    if run.scenario.federation is not None:
        raise FlSimError(
            "A federation defends during training; only a data lake's model is adopted."
        )
    if not (trained / TRAINED).exists():
        raise FlSimError(f"The run in {trained} has no trained model; let it finish first.")
    _require_same(run.scenario, _scenario_of(trained), trained)
    proven(trained, TRAINED)
    for folder in ("artifacts", "keys", "images", "answers", "membership", "inversion"):
        with writing(run.out / folder):
            (run.out / folder).mkdir(exist_ok=True)
    for path in [*trained.glob("artifacts/upload*"), *trained.glob("artifacts/sent-*")]:
        _share(path, run.out / "artifacts" / path.name)
    for path in trained.glob("answers/upload*"):
        _share(path, run.out / "answers" / path.name)
    for kind in ("membership", "inversion"):
        for path in trained.glob(f"{kind}/upload*"):
            _share(path, run.out / kind / path.name)
    rows = read_table(trained / TABLE)
    rows = rows[rows["stage"].str.startswith("upload")]
    run.folder.return_to(None)
    records = rows[list(_COLUMNS)].to_dict("records")
    run.folder.results.add({str(k): v for k, v in record.items()} for record in records)
    run.folder.adopt_pictures(trained)
    mark_trained(run)


def _scenario_of(trained: Path) -> dict[str, Any]:
    path = trained / "scenario.json"
    try:
        return dict(json.loads(path.read_bytes())["scenario"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise damaged(path, trained) from None


def _share(path: Path, other: Path) -> None:
    """Give a file a second name: files here are replaced, never changed; copy where it cannot be.

    A sweep has many runs of one model, and would otherwise keep it many times.
    """
    with writing(other):
        other.unlink(missing_ok=True)
        try:
            os.link(path, other)
        except OSError:
            shutil.copyfile(path, other)


def _require_same(scenario: Scenario, known: dict[str, Any], trained: Path) -> None:
    try:
        other = Scenario.model_validate({**known, "plugins": scenario.plugins})
        until_release(other)
    except (FlSimError, ValidationError):
        raise damaged(trained / "scenario.json", trained) from None
    own, others = ({"seed": s.seed, **until_release(s)} for s in (scenario, other))
    for name in {**own, **others}:
        if own.get(name) != others.get(name):
            raise FlSimError(
                f"The run in {trained} differs from this scenario in '{name}', not only in its "
                f"defence; train this scenario by itself."
            )
