"""``fl_sim.invert`` and ``fl-sim invert`` on networks, files and runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fl_sim
from experiments.cli.main import app
from experiments.run.scenario import Scenario
from fl_sim.artifact import write_artifact
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(name="cnn", channels=3, size=28, classes=4)
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    return write_artifact(path, spec, state_of(build(spec)))


def test_a_file_tells_its_network_and_images_are_compared(file: Path) -> None:
    found = fl_sim.invert(file, images=2, steps=3, progress=False)
    assert found.images.shape == (8, 3, 28, 28) and found.prior == "batch-norm statistics"
    data = fl_sim.load_dataset("phantoms", images=40)
    told = found.measure(data.train, data.test)
    assert told["nearest_was_trained_on_by_guessing"] == 0.5
    assert told["ssim_nearest"] < told["ssim_nearest_of_class_mean"]


def test_a_network_of_ones_own_needs_a_side() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    found = fl_sim.invert(network, size=8, channels=1, images=1, steps=3, progress=False)
    assert found.images.shape == (3, 1, 8, 8) and found.prior == "total variation"
    with pytest.raises(fl_sim.FlSimError, match="give size="):
        fl_sim.invert(network, progress=False)
    with pytest.raises(fl_sim.FlSimError, match="Did you mean 'steps'"):
        fl_sim.invert(network, size=8, channels=1, step=3, progress=False)


def test_weights_given_beside_a_network_are_those_that_are_inverted() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    bright = {
        "1.weight": torch.stack([torch.ones(64), -torch.ones(64)]) / 8,
        "1.bias": torch.zeros(2),
    }
    found = fl_sim.invert(
        network, size=8, channels=1, images=2, steps=100, state=bright, progress=False
    )
    assert float(found.images[:2].mean()) > 0.6 > 0.4 > float(found.images[2:].mean())


def test_the_command_writes_a_picture_and_arrays_and_says_what_they_show(
    file: Path, tmp_path: Path
) -> None:
    words = ["invert", str(file), "--dataset", "phantoms", "--images", "2", "--set", "steps=3"]
    words += ["--out", str(tmp_path), "--json", str(tmp_path / "told.json")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "guessing has 50 %" in result.output.replace("\n", " ")
    with np.load(tmp_path / "classes.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (8, 28, 28, 3) and arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert Image.open(tmp_path / "classes.png").size == (2 * 30 + 2, 4 * 30 + 2)
    assert json.loads((tmp_path / "told.json").read_bytes())["images"] == 8


def test_a_run_measures_it_at_every_stage_where_the_scenario_asks(tmp_path: Path) -> None:
    scenario = {
        "mode": "centralized",
        "dataset": {"name": "phantoms", "train": 60, "validation": 20, "test": 40, "size": 16},
        "model": "cnn",
        "data": {"public_images": 8},
        "training": {"epochs": 0.5},
        "measure": {"scratch_epochs": 0},
        "inversion": {"images": 2, "steps": 3},
        "defense": "lwlrd",
    }
    fl_sim.run(scenario, out=tmp_path, progress=False)
    rows = pd.read_csv(tmp_path / "results.csv")
    table = rows.pivot_table(index="stage", columns="metric", values="value")
    assert (table["inversion_images"] == 8).all() and len(table) == 2
    for column in ("", "_floor_class_mean", "_floor_random"):
        assert table[f"inversion_ssim{column}"].between(-1, 1).all()
    assert {path.name for path in (tmp_path / "inversion").iterdir()} == {
        "upload.safetensors",
        "release.safetensors",
    }
    masks = {**scenario, "dataset": {"name": "phantoms", "task": "segmentation"}, "model": "unet"}
    with pytest.raises(fl_sim.FlSimError, match="classes are of pixels"):
        Scenario.create(**masks)
