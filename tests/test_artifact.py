"""Artifact and key files: what they hold, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.artifact import Key, read_artifact, read_key, write_artifact, write_key
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.models.base import ModelSpec

SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)


def test_a_model_comes_back_bit_for_bit_with_its_dtypes(tmp_path: Path) -> None:
    model = build_model("cnn", 1, 16, 3)
    path = write_artifact(tmp_path / "deep" / "model.safetensors", SPEC, model.state_dict())
    artifact = read_artifact(path)
    assert artifact.spec == SPEC
    for name, tensor in model.state_dict().items():
        assert torch.equal(artifact.state[name], tensor)
        assert artifact.state[name].dtype == tensor.dtype
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(artifact.model()(images), model.eval()(images))


def test_a_key_comes_back(tmp_path: Path) -> None:
    key = Key("transpose", {"codes": torch.rand(2, 3)}, {"variant": "full", "n": 2})
    again = read_key(write_key(tmp_path / "key.safetensors", key))
    assert (again.attack, again.settings) == (key.attack, key.settings)
    assert torch.equal(again.tensors["codes"], key.tensors["codes"])


def test_a_setting_that_json_cannot_hold_is_refused_in_one_sentence(tmp_path: Path) -> None:
    circle: list[object] = []
    circle.append(circle)
    path = tmp_path / "key.safetensors"
    for value in (torch.zeros(2), {"deep": [torch.zeros(2)]}, b"bytes", {1: 0, "a": 0}, circle):
        key = Key("transpose", {}, {"n": 2, "mask": value})
        with pytest.raises(FlSimError, match=r"'transpose' cannot be written.* setting 'mask'"):
            write_key(path, key)
        assert not path.exists()


def test_what_is_not_such_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="does not exist"):
        read_artifact(tmp_path / "none.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x80\x04 this is no model")
    with pytest.raises(FlSimError, match="cannot be read"):
        read_artifact(garbage)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(1)}, foreign)
    with pytest.raises(FlSimError, match="not a model file of fl-sim"):
        read_artifact(foreign)
    with pytest.raises(FlSimError, match="not a key file of fl-sim"):
        read_key(foreign)
    odd = tmp_path / "odd.safetensors"
    save_file({"w": torch.zeros(1)}, odd, {"fl_sim.model": json.dumps({"name": "cnn"})})
    with pytest.raises(FlSimError, match="lacks the key"):
        read_artifact(odd)


def test_weights_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "m.safetensors", SPEC, {"w": torch.zeros(1)})
    with pytest.raises(FlSimError, match="do not fit the model 'cnn'"):
        read_artifact(path).model()
