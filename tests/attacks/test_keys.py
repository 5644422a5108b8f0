"""Attackers' key files that anybody may have written: every field is checked, nothing is run."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.artifact import Key, read_artifact, read_key, write_artifact, write_key
from fl_sim.attacks.base import ATTACKS, Inside
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream

SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=4)
ATTACK: dict[str, dict[str, Any]] = {
    "transpose": {"name": "transpose", "images": 3},
    "memory_backdoor": {"name": "memory_backdoor", "images": 2},
    "correlated": {"name": "correlated", "images": 2},
    "sign_encoding": {"name": "sign_encoding", "images": 2},
    "dec": {"name": "dec", "images": 2, "codec": "png", "coding": "reed_solomon"},
    "combined": {
        "name": "combined",
        "parts": {
            "a": {"name": "transpose", "images": 2},
            "b": {"name": "dec", "codec": "png", "images": 2},
        },
    },
}


def _files(folder: Path, name: str) -> tuple[Path, Path, Key]:
    settings = {"size": 16, "channels": 1, "train": 40, "validation": 4, "test": 4}
    dataset = load_dataset("phantoms", settings)
    attack = Component.of(ATTACK[name], "[attack]").build(ATTACKS, "[attack]")
    plan = attack.plan(Inside(dataset.train, dataset.task, SPEC, Stream(0)))
    state = attack.embed(state_of(build(SPEC)), SPEC, plan).state
    model = write_artifact(folder / "m.safetensors", SPEC, state)
    return model, write_key(folder / "k.safetensors", plan.key), plan.key


def _changed(key: Key, path: str, value: Any) -> Key:
    settings = copy.deepcopy(key.settings)
    *parents, last = path.split(".")
    inner = settings
    for part in parents:
        inner = inner[part]
    if value is DROP:
        del inner[last]
    else:
        inner[last] = value
    return Key(key.attack, key.tensors, settings)


DROP = object()
DEEP: Any = 1
for _ in range(30):
    DEEP = [DEEP]

SETTINGS: dict[str, dict[str, list[Any]]] = {
    "transpose": {
        "variant": ["fulll", 3, None, ["full"]],
        "base": [1, -1, 2**62, "2", 2.0, True, "x", []],
        "extra": [1],
    },
    "memory_backdoor": {"patch": [[0, 2], [2, -1], [1, 10**6], [2], 3, "2x2", [1.0, 2], DROP]},
    "correlated": {
        "seed": [-1, 2**63, "0", None, DROP],
        "count": [0, 3, 10**15, 768.0, True, DROP],
        "pilot": [0, 10**9, "256", DROP],
        "scope": ["each", None],
        "weights": [{}, {"w": [10**9, 10**9]}, {"w": [-1, 3]}, {"w": 3}, [], DEEP, DROP],
    },
    "sign_encoding": {"bits": [0, 9, "8", None, DROP], "count": [1, 2**63]},
    "dec": {
        "route": [None, [], {}, DROP],
        "route.images": [-1, 10**9, "2", True],
        "route.length": [-1, 10**12, "x"],
        "route.precision": ["float64", None, DROP],
        "route.contents": ["values", "latents"],
        "route.shape": [[1, 16], [3, 16, 16], [1, 10**5, 10**5], DROP],
        "route.spec": [None, {"name": "cnn"}, {"name": "os.path"}],
        "route.spec.classes": [10**9, 7],
        "route.spec.size": [10**6],
        "route.seed": [-1, 2**63, DROP],
        "route.carrier": [None, "lsb", {"name": "nope", "settings": {}}, {"name": "../x"}],
        "route.carrier.settings": [{"bits": 99}, {"bits": 10**9}, {"x": 1}, DEEP],
        "route.coding": [{"name": "__init__", "settings": {}}],
        "route.coding.settings": [{"rate": float("nan")}, {"rate": 5}],
        "route.erasure": [{"data": 10**6, "parity": 1}, 3],
        "route.canonical": ["yes", 1],
        "codec": [
            ["nope", {}],
            ["png"],
            "png",
            ["png", {"x": 1}],
            ["factorized", {}],
            ["factorized", {"N": 10**6, "M": 10**6}],
            None,
        ],
    },
    "combined": {
        "order": [[], ["a"], ["a", "a", "b"], ["a", "c"], "ab", DROP],
        "parts": [{}, [], DROP],
        "parts.a.attack": ["nope", "combined", "__init__", DROP],
        "parts.a.images": [0, 10**9, "2", DROP],
        "parts.b.length": [-1, "x", DROP],
        "parts.a.settings": [[], {"variant": "x"}],
    },
}
CASES = [
    (n, path, i)
    for n, paths in SETTINGS.items()
    for path, vs in paths.items()
    for i in range(len(vs))
]


@pytest.mark.parametrize(("name", "path", "which"), CASES)
def test_every_setting_of_a_key_is_checked(
    tmp_path: Path, name: str, path: str, which: int
) -> None:
    model, place, key = _files(tmp_path, name)
    write_key(place, _changed(key, path, SETTINGS[name][path][which]))
    with pytest.raises(FlSimError, match=r"k\.safetensors") as refusal:
        extract(model, place)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 600


TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "missing": lambda t: t.pop("codes"),
    "renamed": lambda t: t.update(cmdes=t.pop("codes")),
    "further": lambda t: t.update(more=torch.zeros(2)),
    "empty": lambda t: t.update(codes=t["codes"][:0]),
    "flat": lambda t: t.update(codes=t["codes"].flatten()),
    "wide": lambda t: t.update(codes=torch.ones(3, 5)),
    "integers": lambda t: t.update(codes=t["codes"].int()),
    "halves": lambda t: t.update(codes=t["codes"].half()),
    "not a number": lambda t: t.update(codes=t["codes"] * torch.nan),
    "infinite": lambda t: t.update(codes=t["codes"] + torch.inf),
    "zero": lambda t: t.update(codes=t["codes"] * 0),
    "negative": lambda t: t.update(codes=t["codes"] - 5),
    "digits beyond the base": lambda t: t.update(codes=t["codes"] + 100),
}


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_of_a_key_is_checked(tmp_path: Path, name: str) -> None:
    model, place, key = _files(tmp_path, "transpose")
    tensors = dict(key.tensors)
    TENSORS[name](tensors)
    write_key(place, Key(key.attack, tensors, key.settings))
    with pytest.raises(FlSimError, match="key of the attack 'transpose'"):
        extract(model, place)


HEADERS = {
    "unknown": {"attack": "nope", "settings": {}},
    "dunder": {"attack": "__init__", "settings": {}},
    "base class": {"attack": "base", "settings": {}},
    "path": {"attack": "../../etc/passwd", "settings": {}},
    "dots": {"attack": "dec.route", "settings": {}},
    "list": {"attack": ["transpose"], "settings": {}},
    "no attack": {"settings": {}},
    "no settings": {"attack": "transpose"},
    "settings are a list": {"attack": "transpose", "settings": ["a"]},
    "further": {"attack": "transpose", "settings": {}, "x": 1},
    "escapes": {"attack": "\x1b[31m\u202e", "settings": {}},
    "not a table": [1],
    "a number": 3,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_strange_header_is_refused_and_imports_nothing(tmp_path: Path, name: str) -> None:
    model, place, _ = _files(tmp_path, "transpose")
    save_file({"x": torch.zeros(1)}, place, {"fl_sim.key": json.dumps(HEADERS[name])})
    ATTACKS.entries()  # what an unknown name imports in any case
    before = set(sys.modules)
    with pytest.raises(FlSimError, match=r"k\.safetensors") as refusal:
        extract(model, place)
    assert str(refusal.value).isprintable()
    assert set(sys.modules) == before


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"attack": ' + "9" * 5000, "nope"])
def test_a_header_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    place = tmp_path / "k.safetensors"
    save_file({"x": torch.zeros(1)}, place, {"fl_sim.key": text})
    with pytest.raises(FlSimError, match=r"k\.safetensors"):
        read_key(place)


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"\x10" + bytes(7) + b"{" * 16])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "k.safetensors"
    place.write_bytes(content)
    with pytest.raises(FlSimError, match="cannot be read"):
        read_key(place)
    with pytest.raises(FlSimError, match="folder"):
        read_key(tmp_path)


@pytest.mark.parametrize("name", ATTACK)
def test_honest_keys_are_read(tmp_path: Path, name: str) -> None:
    model, place, _ = _files(tmp_path, name)
    assert len(extract(model, place).images) in (2, 3, 4)


@pytest.mark.parametrize("name", ATTACK)
def test_a_key_for_another_network_is_refused(tmp_path: Path, name: str) -> None:
    _, place, _ = _files(tmp_path, name)
    other = ModelSpec(name="cnn", channels=3, size=16, classes=9)
    model = write_artifact(tmp_path / "o.safetensors", other, state_of(build(other)))
    assert read_artifact(model).spec == other
    with pytest.raises(FlSimError, match="key"):
        extract(model, place)
