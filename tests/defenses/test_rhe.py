"""Reverse homomorphic encryption as a defence: what it trains, what it leaves, what it refuses."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fl_sim.defenses import rhe
from fl_sim.defenses.chain import ChainSettings
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.sealing.bases import Base
from fl_sim.sealing.heads import features_of, train_head
from fl_sim.settings import parse
from tests.defenses.defense_kit import SPEC, apply, held_out, release_of

QUICK = {"epochs": 30}
HEAD = {"13.weight", "13.bias"}
SQUARE = ModelSpec(name="square_head", channels=1, size=16, classes=3, settings={"hidden": 4})


def _given(**more: Any) -> Any:
    release = release_of(**more)
    with torch.no_grad():  # buffers as of a trained network
        for name, buffer in release.model.named_buffers():
            if "running" in name:
                buffer.add_(0.1)
    return release


def test_a_new_head_is_trained_and_nothing_else_changes() -> None:
    given = _given(entries={"more": torch.ones(3)})
    report, before = apply("rhe", given, **QUICK)
    after = state_of(given.model)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed == HEAD == set(report.sealed.entries)
    assert {n for n, c in report.relative_change.items() if c} == HEAD
    assert report.cap_bits is None and set(given.entries) == {"more"}
    assert report.images == 40 and report.sealed.base == Base("given")
    assert (report.sealed.shape.features, report.sealed.shape.outputs) == (128, 3)


def test_the_old_head_has_no_part_in_the_new_one() -> None:
    heads = []
    for seed in (1, 2):
        given = _given()
        with torch.no_grad():
            given.model[13].weight.normal_(generator=torch.Generator().manual_seed(seed))
        apply("rhe", given, **QUICK)
        heads.append(state_of(given.model)["13.weight"])
    assert torch.equal(*heads)


def test_the_head_is_trained_on_the_held_out_images_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watched(features: torch.Tensor, labels: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((features, labels))
        return train_head(features, labels, *rest, **more)

    monkeypatch.setattr(rhe, "train_head", watched)
    training = held_out(20, SPEC.size)
    given = replace(_given(), training=replace(training, images=255 - training.images))
    apply("rhe", given, **QUICK)
    ((features, labels),) = seen
    pixels, own = given.held_out.tensors()
    with torch.no_grad():
        wanted = given.model[:13].eval()(pixels * 2 - 1)
    torch.testing.assert_close(features, wanted)
    assert torch.equal(labels, own)


def _base(folder: Path, seed: int = 9) -> dict[str, Any]:
    path = folder / "base.safetensors"
    save_file(state_of(build(SPEC, seed)), path)
    return {"base": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("kind", ["file", "fresh"])
def test_nothing_of_the_model_gets_into_a_trusted_base(tmp_path: Path, kind: str) -> None:
    base = _base(tmp_path) if kind == "file" else {"base": "fresh"}
    left = []
    for seed in (1, 2):
        given = replace(_given(), model=build(SPEC, seed), entries={"more": torch.ones(3)})
        report, _ = apply("rhe", given, **QUICK, **base)
        assert not given.entries and report.cap_bits == 0
        left.append(state_of(given.model))
    assert all(torch.equal(left[0][name], left[1][name]) for name in left[0])
    if kind == "file":
        trusted = state_of(build(SPEC, 9))
        assert all(torch.equal(left[0][n], v) for n, v in trusted.items() if n not in HEAD)
        assert report.sealed.base == Base("base.safetensors", base["sha256"])


def test_a_base_that_changes_on_the_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_training(model: Any, *rest: Any) -> torch.Tensor:
        model[1].running_mean += 1e-3  # as a pass in training mode would
        return features_of(model, *rest)

    monkeypatch.setattr(rhe, "features_of", in_training)
    with pytest.raises(FlSimError, match=r"first in '1\.running_mean' at element 0"):
        apply("rhe", _given(), **QUICK)


def test_two_layers_are_sealed_where_the_network_has_them() -> None:
    given = replace(_given(), model=build(SQUARE), spec=SQUARE)
    report, before = apply("rhe", given, layers=2, init_std=0.1, learning_rate=0.05, epochs=60)
    after = state_of(given.model)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed == set(report.sealed.entries) and len(changed) == 4
    assert report.sealed.shape.hidden == 4
    with pytest.raises(FlSimError, match="a linear layer, a square and a linear layer"):
        apply("rhe", _given(), layers=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": "some.safetensors"}, "add sha256"),
        ({"degree": 4096}, "given together"),
        ({"degree": 4096, "moduli": (40, 40, 40), "scale_bits": 29}, "below 128 bits"),
        ({"layers": 2, "form": "dot"}, 'no form "dot"'),
        ({"layers": 3}, "'layers' is 3"),
        ({"learning_rate": 1e30}, "lower learning_rate"),
        (
            {"degree": 4096, "moduli": (30, 29, 40), "scale_bits": 29, "init_std": 10.0},
            "lower scale_bits",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(FlSimError, match=words):
        apply("rhe", _given(), **{**QUICK, **settings})


def test_without_images_there_is_no_head() -> None:
    with pytest.raises(FlSimError, match="no held-out images"):
        apply("rhe", _given(count=0))


def test_in_a_chain_it_comes_last() -> None:
    with pytest.raises(FlSimError, match="nothing can follow 'rhe'"):
        parse(ChainSettings, {"steps": ["rhe", "lwlrd"]}, "[defense]")
    steps = ["weight_dropout", {"name": "rhe", **QUICK}]
    report, _ = apply("chain", _given(), steps=steps)
    assert set(report.sealed.entries) == HEAD
