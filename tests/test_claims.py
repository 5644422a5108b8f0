"""Model files that claim more than they hold: nothing is built for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.claims import TooManyElements, build_claimed, building_within
from fl_sim.codec import CODECS
from fl_sim.codecs.files import codec_from
from fl_sim.errors import FlSimError
from fl_sim.models import MODELS, build, state_of
from fl_sim.models.base import ModelSpec

SPEC = {"name": "cnn", "channels": 1, "size": 28, "classes": 2}
BOMBS: dict[str, dict[str, Any]] = {
    "outputs": {"classes": 900_000},
    "outputs beyond bounds": {"classes": 10**9},
    "no outputs": {"classes": 0},
    "fewer than no outputs": {"classes": -3},
    "side": {"size": 10**6},
    "side of a perceptron": {"name": "mlp", "size": 1024},
    "side of a transformer": {"name": "vit", "size": 1024},
    "no side": {"size": 0},
    "channels": {"channels": 10**9},
    "dunder": {"name": "__init__"},
    "dots": {"name": "os.path"},
    "path": {"name": "../../x"},
    "a module that is no model": {"name": "base"},
    "number for a name": {"name": 3},
    "unknown key": {"sise": 3},
    "settings of another": {"settings": {"norm": 10**9}},
    "codec inside": {
        "name": "two_headed",
        "settings": {"codec": {"name": "factorized", "N": 5000, "M": 5000}},
    },
}


def _file(folder: Path, header: str) -> Path:
    path = folder / "m.safetensors"
    save_file({"w": torch.zeros(3)}, path, {"fl_sim.model": header})
    return path


class _Allocated(TorchFunctionMode):
    """Notes the largest tensor that is made within the block."""

    largest = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("name", BOMBS)
def test_a_claim_is_refused_without_its_memory(tmp_path: Path, name: str) -> None:
    path = _file(tmp_path, json.dumps(SPEC | BOMBS[name]))
    with _Allocated() as allocated, pytest.raises(FlSimError) as refusal:
        read_artifact(path).model()
    assert allocated.largest < 1 << 17
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[1, 2]",
        "3",
        "null",
        '"cnn"',
        "[" * 100_000,
        '{"name": ' + "9" * 5000 + "}",
        '{"settings": ' + '{"a":' * 200 + "1" + "}" * 200 + "}",
    ],
)
def test_a_header_that_is_no_specification_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(FlSimError, match=r"m\.safetensors"):
        read_artifact(_file(tmp_path, header))


def test_too_much_is_noticed_before_it_is_allocated() -> None:
    with _Allocated() as allocated:
        with pytest.raises(TooManyElements), building_within(1000):
            torch.nn.Linear(10, 10)
            torch.nn.Linear(1 << 30, 1 << 30)
        with pytest.raises(TooManyElements), building_within(1000):
            torch.zeros(size=(1 << 40,))
    assert allocated.largest == 100
    with building_within(1000):
        torch.nn.Linear(10, 10)


@pytest.mark.parametrize("name", ["cnn", "mlp", "vit", "resnet18", "two_headed", "unet"])
def test_honest_files_of_every_network_are_built(tmp_path: Path, name: str) -> None:
    spec = ModelSpec(name=name, channels=1, size=32, classes=3, task=MODELS.get(name).tasks[0])
    state = state_of(build(spec))
    path = write_artifact(tmp_path / "m.safetensors", spec, state)
    rebuilt = read_artifact(path).model().state_dict()
    assert all(torch.equal(rebuilt[entry], value) for entry, value in state.items())
    half = {entry: v.half() if v.is_floating_point() else v for entry, v in state.items()}
    build_claimed(spec, half, "It")


def test_a_decoder_claims_no_more_than_is_given() -> None:
    small: Any = CODECS.get("factorized")
    tensors = small(small.Settings(N=4, M=4)).tensors(decoder_only=True)
    settings = {"N": 4, "M": 4}
    codec_from("factorized", settings, tensors)
    with pytest.raises(FlSimError, match="far more weights"):
        codec_from("factorized", {"N": 20_000, "M": 20_000}, tensors)
