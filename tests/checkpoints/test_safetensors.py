"""safetensors read strictly: headers that lie, texts, holes, and networks that are stated."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from tests.checkpoints.checkpoint_kit import found, loud, refusal, weights

SPEC = {"name": "cnn", "channels": 3, "size": 12, "classes": 4}


def _written(path: Path, header: Any, data: bytes = b"\0" * 12) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _one(shape: Any = (3,), offsets: Any = (0, 12), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_an_ordinary_header_says_nothing(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file(weights(), tmp_path / "a.safetensors", metadata)
        assert read_checkpoint(tmp_path / "a.safetensors").findings == ()
    assert read_checkpoint(_written(tmp_path / "b.safetensors", {"w": _one()})).findings == ()


def test_bytes_of_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _written(path, {"w": _one()}, b"\0" * 12 + b"s" * 99)
    found(path, 99)
    _written(path, {"w": _one(), "v": _one((1,), (20, 24))}, b"\0" * 24)
    found(path, 8)
    _written(path, {"w": _one((1,), (8, 12))})
    found(path, 8)


def test_what_a_header_says_beside_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _written(path, {"__metadata__": {"k": "s" * 99}, "w": _one()})
    found(path, 100, "note")
    _written(path, {"__metadata__": {"k": "s" * 9999}, "w": _one()})
    found(path, 10_000, "suspicious")
    _written(path, {"__metadata__": {"format": "s" * 99}, "w": _one()})
    found(path, 105, "note")
    _written(path, json.dumps({"w": _one()}).encode() + b" " * 500)
    found(path, 500, "suspicious")
    _written(path, json.dumps({"w": _one()}).replace(", ", " ,\t  ").encode())
    assert any("otherwise" in words for words in loud(read_checkpoint(path)))
    _written(path, json.dumps({"w": _one()}).replace("F32", "\\u0046\\u00332").encode())
    assert any("otherwise" in words for words in loud(read_checkpoint(path)))


@pytest.mark.parametrize(
    "header",
    [
        {"w": _one(), "v": _one()},
        {"w": _one(), "v": _one((1,), (4, 8))},
        {"w": _one((-3,))},
        {"w": _one((3,), (12, 0))},
        {"w": _one((3,), (0, 13))},
        {"w": _one((3,), (4, 16))},
        {"w": _one((3,), (-12, 0))},
        {"w": _one((3.0,))},
        {"w": _one((True, 3))},
        {"w": _one(dtype="X9")},
        {"w": _one(dtype=["F32"])},
        {"w": _one((2**62, 2**62, 0), (0, 0))},
        {"w": _one((1,) * 100)},
        {"w": _one((2**40,))},
        {"w": 3},
        {"w": {"dtype": "F32"}},
        {"w": {**_one(), "more": 1}},
        [1],
        3,
        {},
        {"__metadata__": 3, "w": _one()},
        {"__metadata__": {"a": 1}, "w": _one()},
        {"w": _one(offsets=[0, 12, 12])},
        b'{"w":' + b"[" * 100_000,
        b"{",
        b'{"w"}',
        b"\xff{}",
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"w":{"dtype":"F32","shape":[3],'
        b'"data_offsets":[0,12]}}',
        b'{"a":NaN}',
        b'{"a":1e999}',
    ],
)
def test_headers_that_lie_end_in_one_sentence(tmp_path: Path, header: Any) -> None:
    with pytest.raises(FlSimError) as error:
        read_checkpoint(_written(tmp_path / "a.safetensors", header))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("length", [100 << 20, 1 << 63, (1 << 64) - 1, 50])
def test_a_length_that_lies(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert re.search("states", refusal(path))


def test_types_of_less_than_a_byte_are_kept_as_bytes(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.safetensors", {"w": _one((4, 6), (0, 12), "F4")})
    read = read_checkpoint(path)
    assert read.state["w"].dtype == torch.uint8 and read.state["w"].numel() == 12
    assert "F4" in read.layouts["w"]
    for dtype, size in (("C64", 8), ("F8_E8M0", 1), ("F8_E4M3", 1), ("BF16", 2), ("BOOL", 1)):
        _written(
            path,
            {"w": _one((12 // size,), (0, 12 // size * size), dtype)},
            b"\0" * (12 // size * size),
        )
        assert read_checkpoint(path).state["w"].element_size() == size


@pytest.mark.parametrize(
    "spec",
    [
        3,
        [1, 2],
        "text",
        {**SPEC, "classes": 10**9},
        {**SPEC, "classes": 0},
        {**SPEC, "classes": -3},
        {**SPEC, "size": 10**6},
        {**SPEC, "channels": 10**9},
        {**SPEC, "name": "../x"},
        {**SPEC, "name": "__init__"},
        {**SPEC, "name": "os.path"},
        {**SPEC, "settings": {"a": [[[[[[[[[[1]]]]]]]]]]}},
        {**SPEC, "more": 1},
        {**SPEC, "settings": {"a": "s" * 70_000}},
        {**SPEC, "size": "twelve"},
    ],
)
def test_a_network_that_cannot_be_is_not_believed(tmp_path: Path, spec: Any) -> None:
    metadata = {"fl_sim.model": json.dumps(spec)}
    read = read_checkpoint(
        _written(tmp_path / "a.safetensors", {"__metadata__": metadata, "w": _one()})
    )
    assert read.spec is None
    assert [f.level for f in read.findings] == ["suspicious"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"size": ' + "9" * 5000 + "}", "\ud800"])
def test_a_statement_that_is_no_json_is_not_believed(tmp_path: Path, text: str) -> None:
    header = {"__metadata__": {"fl_sim.model": text}, "w": _one()}
    read = read_checkpoint(_written(tmp_path / "a.safetensors", header))
    assert read.spec is None and loud(read)


def test_a_statement_with_more_in_it_than_a_network(tmp_path: Path) -> None:
    padded = json.dumps(SPEC).replace(",", "," + " " * 100)
    header = {"__metadata__": {"fl_sim.model": padded}, "w": _one()}
    read = read_checkpoint(_written(tmp_path / "a.safetensors", header))
    assert read.spec == ModelSpec(**SPEC)
    assert any("longer" in words for words in loud(read))
