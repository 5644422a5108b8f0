"""Each format gives the weights back bit for bit, and ordinary files say nothing above a note."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fl_sim.artifact import write_artifact
from fl_sim.checkpoints import read_checkpoint
from fl_sim.models.base import ModelSpec
from tests.checkpoints.checkpoint_kit import (
    archive,
    loud,
    network,
    records,
    refusal,
    same,
    saved,
    weights,
)

SPEC = ModelSpec(name="cnn", channels=3, size=12, classes=4)


def _pickled(path: Path, content: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def test_a_state_dictionary_comes_back_from_every_format(tmp_path: Path) -> None:
    state = weights()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    paths = [
        saved(tmp_path / "a.pth", state),
        saved(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False),
        *(_pickled(tmp_path / f"tensors{p}.pkl", state, p) for p in (2, 4, 5)),
        *(_pickled(tmp_path / f"arrays{p}.pkl", arrays, p) for p in (0, 2, 4, 5)),
        tmp_path / "a.npz",
        tmp_path / "b.npz",
    ]
    for path in paths:
        read = read_checkpoint(path)
        assert same(read.state, dict(state)), path
        assert read.findings == (), (path, read.findings)
        assert all(tensor.is_contiguous() for tensor in read.state.values())
    read = read_checkpoint(tmp_path / "a.safetensors")  # safetensors sorts
    assert same(dict(sorted(read.state.items())), dict(sorted(state.items())))
    assert read.findings == ()


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").format == "safetensors"
    saved(tmp_path / "b.safetensors", weights())
    assert read_checkpoint(tmp_path / "b.safetensors").format == "torch archive"


def test_an_own_artifact_states_its_network(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "own.safetensors", SPEC, weights())
    read = read_checkpoint(path)
    assert read.spec == SPEC
    assert read.findings == ()


def test_names_keep_their_prefix_where_the_network_is_stated(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in weights().items()}
    path = write_artifact(tmp_path / "own.safetensors", SPEC, state)
    assert read_checkpoint(path).state.keys() == state.keys()


def test_numpys_arrays_and_scalars_are_read(tmp_path: Path) -> None:
    arrays = [tensor.numpy() for tensor in weights().values()]
    path = saved(tmp_path / "list.pth", arrays)
    read = read_checkpoint(path)
    assert list(read.state)[:2] == ["arr_0", "arr_1"]
    assert torch.equal(read.state["arr_0"], torch.from_numpy(arrays[0]))
    assert loud(read) == []
    content = {"model": weights(), "best": np.float64(0.9), "epoch": 3}
    read = read_checkpoint(saved(tmp_path / "scalar.pth", content))
    assert loud(read) == []
    assert any("'best'" in f.what for f in read.findings)
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    order = {"w": np.asfortranarray(big), "b": big}
    read = read_checkpoint(_pickled(tmp_path / "order.pkl", order, 4))
    assert all(torch.equal(t, torch.arange(6.0).view(2, 3)) for t in read.state.values())


def test_arrays_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"w": np.arange(6, dtype=np.uint8)}, 4)
    for old, new in (
        (b"K\x06\x85", b"K\x07\x85"),
        (b"u1", b"u2"),
        (b"K\x06\x85", b"J\xff\xff\xff\xff\x85"),
    ):
        assert old in content
        (tmp_path / "a.pkl").write_bytes(content.replace(old, new, 1))
        assert re.search("array", refusal(tmp_path / "a.pkl"))


def test_flowers_rounds_are_read(tmp_path: Path) -> None:
    arrays = [tensor.numpy() for tensor in weights().values()]
    np.savez(tmp_path / "round-2-weights.npz", *arrays)
    read = read_checkpoint(tmp_path / "round-2-weights.npz")
    assert list(read.state) == [f"arr_{i}" for i in range(len(arrays))]
    assert loud(read) == []


def test_a_torchscript_archive_gives_its_weights_and_names_its_code(tmp_path: Path) -> None:
    torch.jit.trace(network().eval(), torch.zeros(1, 1, 8, 8)).save(str(tmp_path / "t.pt"))
    torch.jit.script(network()).save(str(tmp_path / "s.pt"))
    for name in ("t.pt", "s.pt"):
        read = read_checkpoint(tmp_path / name)
        assert same(dict(sorted(read.state.items())), dict(sorted(weights().items())))
        assert read.format == "TorchScript archive"
        assert loud(read) == []
        assert any("code" in f.what for f in read.findings)


@pytest.mark.parametrize("new", [True, False])
def test_a_whole_network_object_gives_its_weights(tmp_path: Path, new: bool) -> None:
    path = saved(tmp_path / "whole.pt", network(), _use_new_zipfile_serialization=new)
    read = read_checkpoint(path)
    assert same(read.state, dict(weights()))
    assert any("torch.nn.modules.conv.Conv2d" in words for words in loud(read))


def test_a_big_endian_archive_is_turned(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"w": torch.tensor([1.5, -2.0]), "n": torch.tensor([3])})
    files = records(path.read_bytes())
    for name, content in files.items():
        width = {"a/data/0": 4, "a/data/1": 8}.get(name)
        if name.endswith("byteorder"):
            files[name] = b"big"
        elif width:
            cells = [content[i : i + width][::-1] for i in range(0, len(content), width)]
            files[name] = b"".join(cells)
    path.write_bytes(archive(OrderedDict(files)))
    read = read_checkpoint(path)
    assert read.state["w"].tolist() == [1.5, -2.0] and read.state["n"].tolist() == [3]


@pytest.mark.parametrize("content", [[1, 2], None, {"a": 1}, {"model": {}}, "text", [], {}])
def test_what_has_no_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    assert re.search("no state dictionary", refusal(saved(tmp_path / "a.pth", content)))
    assert re.search("single tensor", refusal(saved(tmp_path / "b.pth", torch.zeros(3))))


def test_what_refers_to_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.zeros(3)}
    content["model"] = content
    content["list"] = [content]
    assert list(read_checkpoint(saved(tmp_path / "a.pth", content)).state) == ["w"]
