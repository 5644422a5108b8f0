"""The U-Net: shapes, settings, layers, a file and back, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.case import CaseSettings, model_settings, open_case
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.data.splits import HeldOutSettings
from fl_sim.defenses.base import Release
from fl_sim.defenses.lwlrd import Lwlrd, LwlrdSettings
from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import utility
from fl_sim.models import build, build_model, layers
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings, predict, train

SPEC = ModelSpec(
    name="unet",
    channels=3,
    size=32,
    classes=3,
    task="segmentation",
    settings={"channels": (8, 16, 32), "residual_units": 1},
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 64, 72])
def test_every_pixel_has_its_logits(channels: int, size: int) -> None:
    model = build_model("unet", channels, size, 4).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, 4, size, size)


def test_the_default_is_monais_network_with_four_levels() -> None:
    from monai.networks.nets.unet import UNet

    theirs = UNet(2, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2).state_dict()
    ours = build_model("unet", 1, 64, 3).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_settings_travel_with_the_specification(tmp_path: Path) -> None:
    model = build(SPEC, seed=3)
    path = write_artifact(tmp_path / "unet.safetensors", SPEC, model.state_dict())
    artifact = read_artifact(path)
    assert artifact.spec == SPEC and artifact.spec.settings["channels"] == [8, 16, 32]
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(artifact.model()(images), model.eval()(images))
    again, other = build(SPEC, seed=3).state_dict(), build(SPEC, seed=4).state_dict()
    name = next(iter(again))
    assert torch.equal(again[name], model.state_dict()[name])
    assert not torch.equal(again[name], other[name])


@pytest.mark.parametrize("units", [0, 2])
@pytest.mark.parametrize("by", ["tensor", "module", "block"])
def test_every_parameter_is_in_exactly_one_layer(units: int, by: Any) -> None:
    model = build_model("unet", 1, 32, 3, settings={"residual_units": units})
    listed = [p for layer in layers(model, (1, 32, 32), by) for p in layer.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


def test_blocks_go_down_and_up_with_each_activation_beside_its_convolution() -> None:
    model = build_model("unet", 1, 32, 3, settings={"residual_units": 0})
    blocks = layers(model, (1, 32, 32), "block")
    down, up = "model.1.submodule.1.submodule", "model.1.submodule"
    assert [block.name for block in blocks] == [
        "model.0.conv",
        "model.1.submodule.0.conv",
        f"{down}.0.conv",
        f"{down}.1",
        f"{down}.2.conv",
        f"{up}.2.conv",
        "model.2.conv",
    ]
    assert blocks[0].parameters == (
        "model.0.conv.weight",
        "model.0.conv.bias",
        "model.0.adn.A.weight",
    )
    deep = layers(build_model("unet", 1, 32, 3), (1, 32, 32), "block")
    assert deep[0].name == "model.0" and len(deep[0].parameters) == 8


def test_it_learns_organs_and_lwlrd_moves_all_of_it() -> None:
    data = load_dataset(
        "phantoms", {"task": "segmentation", "size": 32, "train": 240, "difficulty": 0.2}
    )
    model = build(SPEC)
    settings = TrainingSettings(epochs=8, batch_size=16, learning_rate=5e-3, flip=True)
    run = LocalTraining(model, SPEC, data.train, data.task, settings, Stream(0))

    def dice() -> float:
        answers = predict(model, data.test, data.task)
        assert answers.shape == (400, 32, 32) and answers.dtype == torch.uint8
        truth = torch.tensor(np.asarray(data.test.labels))
        return utility(answers, truth, data.task, data.test.patients)["dice"]

    fresh = dice()
    report = train(run)
    trained = dice()
    assert fresh < 0.3 and trained > 0.7
    assert report.losses["task"][-1] < report.losses["task"][0] / 2
    held_out = data.validation.subset(np.arange(64))
    release = Release(model, SPEC, held_out, data.task, Stream(0))
    cleaned = Lwlrd(parse(LwlrdSettings, {"epochs": 1}, "[defense]")).apply(release)
    rates = list(cleaned.learning_rates.values())
    assert rates == sorted(rates, reverse=True) and rates[0] / rates[-1] == pytest.approx(100)
    assert all(change > 0 for change in cleaned.relative_change.values())
    assert dice() > 0.6


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        (28, {}, "multiple of 8 from 16 on, and these have 28 pixels; .* such as 32"),
        (8, {}, "such as 16"),
        (28, {"channels": [8, 16, 32, 64, 128]}, "5 levels .* multiple of 16"),
        (32, {"channels": [8]}, "'channels' is"),
        (32, {"channels": [8, 0]}, "has 0, but a level needs at least 1"),
        (32, {"chanels": [8, 16]}, "has no key 'chanels'. Did you mean 'channels'"),
    ],
)
def test_impossible_ones_are_refused(size: int, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FlSimError, match=words):
        build_model("unet", 1, size, 3, settings=settings)


def case(dataset: dict[str, Any], model: str, **settings: Any) -> CaseSettings:
    """A case of phantoms."""
    small = {"size": 32, "train": 40, "validation": 8, "test": 8, **dataset}
    return CaseSettings(
        dataset=Component(name="phantoms", settings=small),
        model=Component(name=model, settings=settings),
        data=HeldOutSettings(public_images=4),
    )


def test_a_case_states_the_task_and_every_setting_of_the_model() -> None:
    opened = open_case(case({"task": "segmentation"}, "unet", channels=[8, 16]), None)
    assert opened.spec.task == "segmentation" and opened.spec.classes == 3
    assert opened.spec.settings == {"channels": [8, 16], "residual_units": 2}
    assert open_case(case({}, "cnn"), None).spec.settings == {"norm": "batch"}
    every = {"normalize", "stem", "weights"}
    assert set(model_settings("unet").model_fields) == {"channels", "residual_units"} | every
    assert set(model_settings("cnn").model_fields) == {"norm"} | every


def test_a_model_for_another_task_is_refused_with_those_that_fit() -> None:
    with pytest.raises(
        FlSimError, match=r"'unet' is for segmentation, .* is classification; .*cnn"
    ):
        open_case(case({}, "unet"), None)
    with pytest.raises(FlSimError, match=r"'cnn' is for classification, .* choose one of: .*unet"):
        open_case(case({"task": "segmentation"}, "cnn"), None)
