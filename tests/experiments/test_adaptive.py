"""The study of adaptive attackers, small: a table, figures, and no second run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments import adaptive
from experiments.scenario import Scenario

BASE: dict[str, Any] = {
    "dataset": "phantoms",
    "model": {"name": "resnet18", "stem": "default"},
    "defense": {"name": "lwlrd", "epochs": 1},
    "training": {"epochs": 0.5, "batch_size": 16},
    "measure": {"scratch_epochs": 0},
    "data": {"train_images": 32, "test_images": 20, "images": 20},
    "threads": 1,
}


@pytest.mark.slow
def test_dead_weights_let_everything_through_and_low_bits_nothing(tmp_path: Path) -> None:
    chosen = ("low bits", "low bits of dead weights", "lattices in dead weights")
    modes = {"data lake": 1, "two hospitals": 2}
    frame = adaptive.study(BASE, modes, tmp_path, images=6, chosen=chosen, rounds=1)
    assert len(frame) == 2 * 3 * 2
    intact = frame.set_index(["mode", "attacker", "stage"])["images_intact"]
    for attacker in chosen:
        assert intact["data lake", attacker, "upload"] == 6
    assert intact["data lake", "low bits", "release"] == 0
    assert intact["data lake", "low bits of dead weights", "release"] == 6
    # Written for the average: illegible in the upload, whole in what is broadcast after LWLRD.
    for mode in modes:
        assert intact[mode, "lattices in dead weights", "release"] == 6
    assert intact["two hospitals", "lattices in dead weights", "upload"] == 0
    assert intact["two hospitals", "low bits", "release"] == 0
    for hospitals in modes.values():
        assert (tmp_path / f"adaptive-{hospitals}.png").stat().st_size > 10_000
    read = pd.read_csv(tmp_path / "adaptive.csv")
    assert len(read) == len(frame)


@pytest.mark.parametrize("hospitals", [1, 4, 16])
def test_every_attacker_makes_a_scenario(hospitals: int) -> None:
    for attack in adaptive.attackers(8, hospitals).values():
        scenario = {**BASE, "attack": attack, **adaptive._mode(hospitals, 2)}
        assert Scenario.from_mapping(scenario).make_attack() is not None
