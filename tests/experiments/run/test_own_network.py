"""Scenarios whose network is the user's: an object, a function, a checkpoint, a pixel range."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.run.scenario import Scenario
from experiments.run.start import run
from fl_sim.artifact import read_artifact
from fl_sim.errors import FlSimError

SMALL: dict[str, Any] = {
    "dataset": "phantoms",
    "training": {"epochs": 0.2},
    "data": {"train_images": 80, "images": 40, "test_images": 40, "public_images": 20},
    "attack": {"name": "transpose", "images": 4},
    "measure": {"scratch_epochs": 0},
}
FEDERATED = {
    "mode": "federated",
    "federation": {"hospitals": 2, "rounds": 1, "engine": "inprocess"},
}


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=3)
        self.head = nn.Linear(6 * 64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(images).relu().flatten(1))
        return logits


@pytest.mark.parametrize("mode", [{"mode": "centralized"}, FEDERATED])
def test_a_network_as_an_object_is_trained_from_its_weights(
    mode: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    mine = Net()
    scenario = {**SMALL, **mode, "model": mine, "training": {"epochs": 0.2, "learning_rate": 1e-9}}
    scenario["attack"] = "none"
    result = run(scenario, tmp_path)
    left = read_artifact(result.artifact).state
    assert result.scenario.model.name.startswith("Net@")
    for name, value in mine.state_dict().items():
        assert torch.allclose(left[name], value, atol=1e-6), name


def test_a_function_makes_the_network_and_its_run_goes_on_by_name(tmp_path: Path) -> None:
    scenario = {**SMALL, "mode": "centralized", "model": {"name": Net}}
    first = run(scenario, tmp_path)
    assert len(run(scenario, tmp_path).table) == len(first.table)
    assert len(first.originals) == 4 and "upload/raw" in first.recovered


def test_outputs_that_are_not_the_task_s_are_told_before_training(tmp_path: Path) -> None:
    scenario = {**SMALL, "mode": "centralized", "model": Net(7)}
    with pytest.raises(FlSimError, match="Net has 7 outputs, and the task 4"):
        run(scenario, tmp_path)
    assert not (tmp_path / "results.csv").exists()


def test_an_object_that_is_no_network_is_told() -> None:
    with pytest.raises(FlSimError, match=r"'name' is .1, 2., but it should be a string"):
        Scenario.from_mapping({**SMALL, "mode": "centralized", "model": {"name": [1, 2]}})


def test_where_weights_lie_does_not_name_a_run_and_what_is_read_does() -> None:
    plain = Scenario.from_mapping({**SMALL, "mode": "centralized", "model": "cnn"})
    told = {"name": "cnn", "normalize": "symmetric", "stem": "default"}
    assert Scenario.from_mapping({**SMALL, "mode": "centralized", "model": told}) == plain
    other = {"name": "cnn", "weights": "/somewhere/w.pth"}
    moved = {"name": "cnn", "weights": "/elsewhere/w.pth"}
    identities = [
        Scenario.from_mapping({**SMALL, "mode": "centralized", "model": model}).identity
        for model in ("cnn", other, moved, {"name": "cnn", "normalize": "none"})
    ]
    assert identities[1] == identities[2] and len(set(identities)) == 3


def test_a_network_for_another_task_is_refused_before_data_are_prepared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*arguments: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("fl_sim.case.load_dataset", load)
    scenario = {**SMALL, "mode": "centralized", "dataset": "hippocampus", "model": "resnet18"}
    with pytest.raises(FlSimError, match=r"task is segmentation; choose one of.*unet"):
        run(scenario, tmp_path)
    phantoms = {"name": "phantoms", "task": "segmentation"}
    with pytest.raises(FlSimError, match="'cnn' is for classification"):
        run({**scenario, "dataset": phantoms, "model": "cnn"}, tmp_path)
