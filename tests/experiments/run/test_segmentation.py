"""Whole runs on masks: utility is Dice everywhere, in a data lake and in a federation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.run.start import run
from experiments.tables.console import compact
from fl_sim.artifact import Artifact, read_artifact
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import utility
from fl_sim.results import without_timings
from fl_sim.training import predict

SMALL: dict[str, Any] = {
    "dataset": {
        "name": "phantoms",
        "task": "segmentation",
        "size": 32,
        "channels": 1,
        "train": 200,
        "validation": 60,
        "test": 60,
        "difficulty": 0.2,
    },
    "model": {"name": "unet", "channels": [8, 16, 32], "residual_units": 1},
    "data": {"public_images": 16},
    "training": {"batch_size": 16, "learning_rate": 5e-3},
    "defense": {"name": "lwlrd", "epochs": 1},
    "measure": {"scratch_epochs": 1},
    "threads": 1,
}
FEDERATION = {"hospitals": 3, "rounds": 2, "engine": "inprocess", "partition": "patient"}
METRICS = {"dice", "dice[lungs]", "dice[heart]"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    yield


def test_a_data_lake_is_measured_by_dice(tmp_path: Path) -> None:
    result = run({**SMALL, "mode": "centralized"}, tmp_path / "out")
    metrics = set(result.table["metric"])
    assert METRICS | {f"{metric}_floor_scratch" for metric in METRICS} <= metrics
    assert not [metric for metric in metrics if metric.startswith(("auc", "accuracy"))]
    shown = compact(result.summary())
    assert {"\nDice", "Dice\nscratch"} <= set(shown.columns) and "\nAUC" not in shown.columns
    assert result.summary()["dice"].min() > 0.6
    columns = list(result.summary().columns)
    assert columns.index("dice") < columns.index("dice[heart]") < len(columns)
    spec = read_artifact(result.artifact).spec
    assert (spec.task, spec.settings["channels"]) == ("segmentation", [8, 16, 32])
    dice = result.table[(result.table["metric"] == "dice") & (result.table["stage"] == "release")]
    assert dice["value"].tolist() == [_dice_of_volumes(read_artifact(result.artifact))]
    report = json.loads((result.out / "defense.jsonl").read_text().splitlines()[0])
    assert [0 < epoch["utility"] <= 1 for epoch in report["epochs"]] == [True]


def _dice_of_volumes(artifact: Artifact) -> float:
    """What the released file reaches on the test volumes."""
    keys = {key: value for key, value in SMALL["dataset"].items() if key != "name"}
    dataset = load_dataset("phantoms", keys)
    test = dataset.test
    assert test.patients is not None and len(set(test.patients)) < len(test)
    answers = predict(artifact.model(), test, dataset.task)
    return utility(answers, torch.tensor(test.labels), dataset.task, test.patients)["dice"]


def test_a_federation_repeats_and_learns(tmp_path: Path) -> None:
    scenario = {**SMALL, "mode": "federated", "federation": FEDERATION}
    scenario["measure"] = {"scratch_epochs": 0}
    scenario["training"] = {**SMALL["training"], "epochs": 4}
    first, second = (run(scenario, tmp_path / name).table for name in ("one", "two"))
    assert without_timings(first).equals(without_timings(second))
    release = first[(first["stage"] == "release") & (first["metric"] == "dice")]
    assert release["round"].tolist() == [1, 2] and release["value"].iloc[-1] > 0.6


def test_transpose_has_nothing_to_run_backwards(tmp_path: Path) -> None:
    scenario = {**SMALL, "mode": "centralized", "attack": "transpose"}
    with pytest.raises(FlSimError, match="segmentation") as refusal:
        run(scenario, tmp_path / "out")
    assert "\n" not in str(refusal.value)
