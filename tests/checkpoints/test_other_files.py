"""Files that are something else are named; models in several files are put together."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError
from tests.checkpoints.checkpoint_kit import loud, refusal, same, saved, weights


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x051.0.0" + bytes(100), "ONNX"),
        (b"\x08\x01\x12\x05serve" + bytes(100), "TensorFlow"),
        (bytes(4) + b"TFL3" + bytes(100), "TensorFlow"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x1f\x8b\x08\0\0", "gzip"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"%PDF-1.7", "PDF"),
        (b'{"a": 1}', "JSON"),
        (b"learning_rate = 0.1\n", "text"),
        (b"\x93NUMPY\x01\0", "NumPy"),
        (bytes(500), "zeros"),
        (bytes(range(256)) * 8, "format"),
        (b"\x80\x04", "pickle"),
    ],
)
def test_a_file_is_named_for_what_it_is(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(FlSimError, match=word) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_archives_of_other_things_are_named(tmp_path: Path) -> None:
    for names, word in (
        (["a.txt"], "a.txt"),
        (["config.json", "m.weights.h5"], "Keras"),
        ([], "zip"),
    ):
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            for name in names:
                archive.writestr(name, "x")
        assert re.search(word, refusal(tmp_path / "a.pth"))
    assert re.search("does not exist", refusal(tmp_path / "none.pth"))


def _sharded(folder: Path, index: bool = True) -> dict[str, torch.Tensor]:
    folder.mkdir()
    names = sorted(weights())
    placed: dict[str, str] = {}
    for number in (1, 2):
        file = f"model-{number:05d}-of-00002.safetensors"
        part = {name: weights()[name] for name in names[number - 1 :: 2]}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    if index:
        content = {"metadata": {"total_size": 1}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return dict(weights())


@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_shards_is_one_model(tmp_path: Path, index: bool) -> None:
    state = _sharded(tmp_path / "model", index)
    read = read_checkpoint(tmp_path / "model")
    assert same(dict(sorted(read.state.items())), dict(sorted(state.items())))
    assert loud(read) == []
    if index:
        again = read_checkpoint(tmp_path / "model" / "model.safetensors.index.json")
        assert same(again.state, read.state)
    (tmp_path / "model" / "model-00001-of-00002.safetensors").unlink()
    assert re.search(r"model-00001-of-00002\.safetensors", refusal(tmp_path / "model"))


def test_shards_of_torchs_format(tmp_path: Path) -> None:
    state = weights()
    first = dict(list(state.items())[:3])
    second = dict(list(state.items())[3:])
    saved(tmp_path / "pytorch_model-00001-of-00002.bin", first)
    saved(tmp_path / "pytorch_model-00002-of-00002.bin", second)
    read = read_checkpoint(tmp_path)
    assert same(read.state, dict(state))


def test_an_index_and_its_files_are_compared(tmp_path: Path) -> None:
    _sharded(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["0.bias"]
    index.write_text(json.dumps(content))
    assert any("0.bias" in words for words in loud(read_checkpoint(index)))
    content["weight_map"]["more"] = "model-00001-of-00002.safetensors"
    content["weight_map"]["0.bias"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert any("do not hold" in words for words in loud(read_checkpoint(index)))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../../etc/passwd"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ".."}}',
    ],
)
def test_an_index_that_lies(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.index.json").write_text(content)
    assert re.search("index", refusal(tmp_path / "m.index.json"))


def test_a_folder_without_one_model_is_refused(tmp_path: Path) -> None:
    assert re.search("no model file", refusal(tmp_path))
    saved(tmp_path / "a.pth", weights())
    (tmp_path / "config.json").write_text("{}")
    assert same(read_checkpoint(tmp_path).state, dict(weights()))
    saved(tmp_path / "b.pth", weights())
    assert re.search("several", refusal(tmp_path))
