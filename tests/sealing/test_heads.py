"""Heads found in networks, trained on frozen features, and bases that must stay as they are."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.randomness import Stream
from fl_sim.sealing.bases import load_base, require_known, require_same_base
from fl_sim.sealing.heads import (
    HeadSettings,
    entries_of,
    features_of,
    find_head,
    head_logits,
    read_head,
    train_head,
)
from fl_sim.training import normalized

SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
SQUARE = ModelSpec(name="square_head", channels=1, size=16, classes=3, settings={"hidden": 5})
TASK = Task("multi-class", ("a", "b", "c"))


def _images(count: int = 5) -> Split:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)
    return Split(pixels, generator.integers(0, 3, count))


@pytest.mark.parametrize(("spec", "layers"), [(SPEC, 1), (SQUARE, 2), (SQUARE, 1)])
def test_a_head_and_its_features_are_the_network(spec: ModelSpec, layers: int) -> None:
    network = build(spec, 3).train()
    before = state_of(network)
    head = find_head(network, spec, layers)
    features = features_of(network, head, _images(20))
    assert network.training and features.shape[0] == 20
    assert all(torch.equal(value, before[name]) for name, value in state_of(network).items())
    with torch.no_grad():
        answers = network.eval()(normalized(_images(20).tensors()[0]))
        logits = head_logits(read_head(network, head), features)
    torch.testing.assert_close(logits, answers)
    assert len(entries_of(network, head)) == 2 * layers == 2 * len(head)


def test_a_network_that_ends_otherwise_is_refused() -> None:
    with pytest.raises(FlSimError, match=r"a linear layer, a square and .* model = square_head"):
        find_head(build(SPEC), SPEC, 2)


def test_a_second_head_beside_the_last_layer_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(256, 3), nn.Linear(256, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.one(images.flatten(1)) + self.two(images.flatten(1))

    with pytest.raises(FlSimError, match="does not end with one linear layer"):
        find_head(Both(), SPEC, 1)


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_head_is_trained_by_torchs_own_gradient_descent(hidden: int) -> None:
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    settings = HeadSettings(epochs=40, learning_rate=0.1, weight_decay=0.01, init_std=0.3)
    stream = Stream(5)
    trained, losses = train_head(features, labels, TASK, settings, stream, hidden=hidden)
    generator = stream.torch_generator("initial head")
    sizes = [6, *([hidden] if hidden else []), 3]
    own = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for layer in own:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.3)
            layer.bias.zero_()
    optimizer = torch.optim.SGD(nn.ModuleList(own).parameters(), 0.1, weight_decay=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        answers = features
        for number, layer in enumerate(own):
            answers = layer(answers**2 if number else answers)
        nn.functional.cross_entropy(answers, labels).backward()
        optimizer.step()
    for ours, theirs in zip(trained, own, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight.detach())
        torch.testing.assert_close(ours.bias, theirs.bias.detach())
    assert len(losses) == 40 and losses[-1] < losses[0]


def test_a_head_that_diverges_or_has_no_images_is_one_sentence() -> None:
    settings = HeadSettings(learning_rate=1e20, epochs=5)
    with pytest.raises(FlSimError, match="lower learning_rate"):
        train_head(torch.randn(4, 3) * 1e20, torch.arange(4) % 3, TASK, settings, Stream(0))
    with pytest.raises(FlSimError, match="no held-out images"):
        train_head(torch.zeros(0, 3), torch.zeros(0), TASK, HeadSettings(), Stream(0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    save_file(state_of(build(SPEC, 1)), path)
    return path


def test_a_base_is_taken_by_its_hash(file: Path) -> None:
    sealed = ("13.weight", "13.bias")
    base = load_base(file, checksum(file), SPEC, sealed)
    state = state_of(build(SPEC, 1))
    assert base.keys() == state.keys() - set(sealed)
    assert all(torch.equal(value, state[name]) for name, value in base.items())
    with pytest.raises(FlSimError, match="it is another file than the one that is trusted"):
        load_base(file, "0" * 64, SPEC, sealed)
    with pytest.raises(FlSimError, match="does not exist"):
        load_base(file / "more", "0" * 64, SPEC, sealed)
    wider = SPEC.model_copy(update={"channels": 3})
    with pytest.raises(FlSimError, match=r"has '0.weight' as .* \[32, 1, 3, 3\]"):
        load_base(file, checksum(file), wider, sealed)


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "1.num_batches_tracked"])
def test_the_first_difference_of_a_base_is_named(name: str) -> None:
    base = state_of(build(SPEC, 1))
    state = {n: v.clone() for n, v in base.items()}
    require_same_base(state, base, "The model")
    changed = state[name].flatten()
    if changed.is_floating_point():
        changed[-1:].view(torch.int32).bitwise_xor_(1)  # the last bit of the last element
    else:
        changed[-1] += 1
    at = changed.numel() - 1
    with pytest.raises(FlSimError, match=f"first in '{name}' at element {at}:"):
        require_same_base(state, base, "The model")


def test_zeros_of_either_sign_are_a_difference() -> None:
    with pytest.raises(FlSimError, match=r"at element 0: -0\.0 in place of 0.0"):
        require_same_base({"a": -torch.zeros(2)}, {"a": torch.zeros(2)}, "The model")


@pytest.mark.parametrize(
    ("base", "sha256", "words"),
    [
        ("base.safetensors", None, "add sha256"),
        ("base.safetensors", "abc", "64 hexadecimal digits"),
        ("given", "0" * 64, "leave it out"),
    ],
)
def test_a_base_is_said_exactly(base: str, sha256: str | None, words: str) -> None:
    with pytest.raises(FlSimError, match=words):
        require_known(base, sha256)
