"""``fl_sim.reconstruct`` and ``fl-sim rhe attack``: a head in clear, of somebody's network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fl_sim
from experiments.cli.main import app
from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.data.base import Split
from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.sets import balanced_sets
from fl_sim.sealing.heads import (
    HeadSettings,
    features_of,
    find_head,
    train_head,
    write_head,
)

DATA = fl_sim.load_dataset("phantoms", {"size": 12, "train": 400, "test": 40})
HEAD = HeadSettings(epochs=40, learning_rate=0.02)
SETTINGS = {"shadows": 400, "head": HEAD.model_dump()}


class Plain(nn.Module):
    """Pixels through a fixed turn, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(3 * 12 * 12, 60)
        self.head = nn.Linear(60, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.turn(images.flatten(1)))
        return logits


class Deep(Plain):
    """The same with a ReLU and a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(super().forward(images).relu())
        return logits


@pytest.fixture(scope="module")
def owners() -> Split:
    rows = balanced_sets(DATA.test.labels, 4, 1, 1, Stream(3))[0]
    return DATA.test.subset(rows.astype(np.int64))


@pytest.fixture(scope="module")
def model(owners: Split) -> nn.Module:
    torch.manual_seed(0)
    network = Plain()
    pixels, labels = owners.tensors()
    with torch.no_grad():
        features = network.turn((pixels * 2 - 1).flatten(1))
    trained, _ = train_head(features, labels, DATA.task, HEAD, Stream(5))
    write_head(network, ("head",), trained)
    return network.eval()


def test_a_head_in_clear_tells_of_its_images(model: nn.Module, owners: Split, tmp_path) -> None:
    found = fl_sim.reconstruct(model, DATA.train, originals=owners, progress=False, **SETTINGS)
    assert found.images.shape == (4, 3, 12, 12) and found.error < 0.8 * found.class_mean_error
    own = owners.tensors()[0]
    assert float((found.images - own).square().mean()) < 0.8 * float(
        (found.guess - own).square().mean()
    )
    told = found.told()
    assert told["images"] == 4 and told["nearest"] >= 2 > 10 * told["nearest_by_guessing"]
    path = found.save(tmp_path / "found.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(path)["images"], found.images)


def test_without_originals_there_is_no_evidence(model: nn.Module, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    pixels, labels = DATA.train.tensors()
    first = fl_sim.reconstruct(model, pixels, labels, kept=kept, progress=False, **SETTINGS)
    assert first.evidence is None and set(first.told()) == {"error", "class_mean_error"}
    files = {file: file.stat().st_mtime_ns for file in kept.glob("*.safetensors")}
    again = fl_sim.reconstruct(model, pixels, labels, kept=kept, progress=False, **SETTINGS)
    assert files and files == {f: f.stat().st_mtime_ns for f in kept.glob("*.safetensors")}
    assert torch.equal(first.images, again.images)


def test_two_layers_and_decisions_are_attacked_too(model: nn.Module) -> None:
    torch.manual_seed(1)
    settings = {**SETTINGS, "shadows": 60}
    deep = fl_sim.reconstruct(
        Deep(), DATA.train, hidden=4, activation="relu", progress=False, **settings
    )
    asked = fl_sim.reconstruct(
        model, DATA.train, sees="decisions", questions=100, progress=False, **settings
    )
    for found in (deep, asked):
        assert found.images.shape == (4, 3, 12, 12) and bool(found.images.isfinite().all())
    with pytest.raises(FlSimError, match="hidden is 7, but the head's first layer has 4 units"):
        fl_sim.reconstruct(Deep(), DATA.train, hidden=7, activation="relu", progress=False)
    with pytest.raises(FlSimError, match="does not end with a linear layer, a square and"):
        fl_sim.reconstruct(Deep(), DATA.train, hidden=4, progress=False)


def test_what_cannot_be_is_refused_in_words(model: nn.Module, owners: Split, tmp_path) -> None:
    with pytest.raises(FlSimError, match="give the labels of the attacker's images"):
        fl_sim.reconstruct(model, DATA.train.tensors()[0], progress=False)
    with pytest.raises(FlSimError, match="Class 1 has 0 of the original images"):
        fl_sim.reconstruct(
            model, DATA.train, originals=owners.subset(np.arange(1)), progress=False, **SETTINGS
        )
    with pytest.raises(FlSimError, match=r"no key 'shadow'.*shadows"):
        fl_sim.reconstruct(model, DATA.train, shadow=3, progress=False)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FlSimError, match="whose head nobody can read but its owner"):
        fl_sim.reconstruct(tmp_path, DATA.train, progress=False)


def _said(*words: object) -> str:
    done = CliRunner().invoke(app, ["rhe", *map(str, words)])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_by_command_from_a_public_base_to_images(owners: Split, tmp_path: Path) -> None:
    base, out, told = tmp_path / "base.safetensors", tmp_path / "out", tmp_path / "told.json"
    said = _said(
        "base", "--dataset", "phantoms", "--size", 12, "--model", "cnn", "--share", 0.2,
        "--set", "epochs=0.5", "--out", base,
    )  # fmt: skip
    assert "SHA-256 " in said and "of" in said
    artifact = read_artifact(base)
    network = artifact.model()
    names = find_head(network, artifact.spec, 1)
    features, labels = features_of(network, names, owners), owners.tensors()[1]
    trained, _ = train_head(features, labels, DATA.task, HEAD, Stream(5))
    write_head(network, names, trained)
    left = tmp_path / "left.safetensors"
    write_artifact(left, artifact.spec, network.state_dict())
    originals = tmp_path / "originals.npz"
    np.savez(originals, images=owners.images, labels=owners.labels)
    keys = ["shadows=60", "head.epochs=40", "head.learning_rate=0.02"]
    words = [word for key in keys for word in ("--set", key)]
    said = _said(
        "attack", left, "--dataset", "phantoms", "--out", out, "--originals", originals,
        "--json", told, *words,
    )  # fmt: skip
    assert "4 images in" in said and "of other heads" in said.replace("\n", " ")
    assert {"found", "nearest"} < set(json.loads(told.read_text()))
    assert (out / "reconstructed.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "reconstructed.safetensors").exists()
    with pytest.raises(FlSimError, match=r"give a .npz file with the arrays"):
        _said("attack", left, "--dataset", "phantoms", "--out", out, "--originals", base)


def test_the_public_part_is_in_no_other(tmp_path: Path) -> None:
    from fl_sim.reconstruction.public_base import parted

    parts = parted(DATA, 0.25)
    public = {image.tobytes() for image in parts.public.images}
    others = (*parts.attacker.images, *parts.held_out.images, *parts.test.images)
    assert len(parts.public) == 100 and len(parts.attacker) == 300
    assert not public & {image.tobytes() for image in others}
    with pytest.raises(FlSimError, match="A share of 1 of 400 training images leaves"):
        parted(DATA, 1.0)
