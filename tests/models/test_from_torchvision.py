"""Torchvision's classifiers by name, networks without memory, and functions of the user's."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from fl_sim.errors import FlSimError
from fl_sim.models import MODELS, ModelSpec, build_model, skeleton, state_model
from fl_sim.models.from_torchvision import names


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_classifier_of_torchvision_is_a_model_by_its_name(name: str, channels: int) -> None:
    model = build_model(name, channels, 32, 5).eval()
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 5)


def test_the_names_read_from_its_files_are_those_that_torchvision_lists() -> None:
    assert list(names()) == models.list_models(module=models)


def test_small_stems_keep_the_size() -> None:
    model = build_model("resnet34", 3, 8, 5, "small")
    assert model.get_submodule("conv1")(torch.rand(1, 3, 8, 8)).shape[-1] == 8
    with pytest.raises(FlSimError, match="no stem"):
        build_model("mobilenet_v2", 3, 32, 5, "small")


def test_a_name_of_this_project_goes_before_torchvisions() -> None:
    def entries(name: str) -> set[str]:
        return set(skeleton(ModelSpec(name=name, channels=3, size=64, classes=2)))

    assert any("running_mean" in n for n in entries("vgg11"))
    assert not any("running_mean" in n for n in entries("torchvision/vgg11"))


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(FlSimError, match="at least 75 pixels"):
        build_model("inception_v3", 3, 28, 5)


@pytest.mark.slow
def test_every_skeleton_is_there_without_memory() -> None:
    for name in names():
        size = max(224, MODELS.get(name).min_sizes["default"])
        own = skeleton(ModelSpec(name=name, channels=1, size=size, classes=5))
        assert all(tensor.is_meta for tensor in own.values()), name


def test_a_skeleton_has_the_shapes_of_the_network() -> None:
    for name in ("regnet_y_400mf", "cnn", "two_headed"):
        spec = ModelSpec(name=name, channels=3, size=32, classes=5)
        real = build_model(name, 3, 32, 5).state_dict()
        own = skeleton(spec)
        assert {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in real.items()}


def test_a_function_is_imported_only_where_the_user_states_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stated_once.py").write_text(
        "from torch import nn\nopen('imported', 'w').close()\n"
        "def make(size):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size ** 2, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))  # forgets it again
    with pytest.raises(FlSimError, match="state it"):
        MODELS.get("stated_once:make")
    assert not Path("imported").exists()
    assert state_model("stated_once:make") == "stated_once:make"
    assert Path("imported").exists()
    assert build_model("stated_once:make", 3, 8, 2)(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert state_model("cnn") == "cnn"
