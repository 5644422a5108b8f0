"""Dead weights: found from shapes, confirmed by gradients, and untouched by fine-tuning."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.dead import dead_weights, forward_order
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec

RESNET = ModelSpec(name="resnet18", channels=3, size=28, classes=7)


class Odd(nn.Module):
    """Convolutions of every kind, on feature maps as small as they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 4, 5, stride=4, padding=2)  # 8 -> 2
        self.dilated = nn.Conv2d(4, 4, 3, padding=3, dilation=3)
        self.same = nn.Conv2d(4, 4, (4, 3), padding="same")
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(4, 4, 5, padding=2, groups=2)
        self.up = nn.ConvTranspose2d(4, 4, 6, stride=2, padding=3)  # 2 -> 2
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.same(torch.tanh(self.dilated(self.strided(x)))))
        x = torch.tanh(self.up(self.grouped(self.mirrored(x))))
        x = self.shared(self.down(self.shared(x)))
        return self.last(x.flatten(1))


@pytest.fixture(scope="module", autouse=True)
def _odd_model() -> None:
    MODELS.register("odd_convolutions", "for this test")(
        ModelEntry(build=lambda spec: Odd(), min_sizes={"default": 8})
    )


def reached(spec: ModelSpec, batches: int = 3) -> dict[str, torch.Tensor]:
    """Which elements of kernels ever get a gradient."""
    network = build(spec).train()
    result: dict[str, torch.Tensor] = {}
    for seed in range(batches):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand((4, *spec.input_shape), generator=generator)
        network.zero_grad()
        (network(images) * torch.randn(4, spec.classes, generator=generator)).sum().backward()
        for name, parameter in network.named_parameters():
            if parameter.dim() > 2 and parameter.grad is not None:
                result[name] = result.get(name, torch.tensor(False)) | (parameter.grad != 0)
    return result


@pytest.mark.parametrize("size", [8, 9, 11])
def test_dead_taps_are_exactly_those_that_no_gradient_reaches(size: int) -> None:
    spec = ModelSpec(name="odd_convolutions", channels=3, size=size, classes=3)
    dead = dead_weights(spec)
    for name, live in reached(spec).items():
        expected = ~live
        assert torch.equal(dead.get(name, torch.zeros_like(expected)), expected), name
    if size == 8:
        assert set(dead) >= {"dilated.weight", "same.weight", "grouped.weight", "up.weight"}
        assert "mirrored.weight" not in dead
        assert "shared.weight" not in dead  # dead in one use, live in the other


def test_no_gradient_reaches_what_is_called_dead_in_a_resnet18() -> None:
    dead, live = dead_weights(RESNET), reached(RESNET, 1)
    assert all(not (dead[name] & live[name]).any() for name in dead)
    layer4 = [n for n in live if n.startswith("layer4") and live[n].shape[-1] == 3]
    count = sum(int(dead[name].sum()) for name in layer4)
    assert count / sum(live[name].numel() for name in layer4) == pytest.approx(0.8413, abs=1e-3)
    for name in ("layer4.0.conv2.weight", "layer4.1.conv1.weight", "layer4.1.conv2.weight"):
        assert dead[name].float().mean() == pytest.approx(8 / 9)
        assert not dead[name][:, :, 1, 1].any()


def test_a_larger_image_leaves_none() -> None:
    assert not dead_weights(RESNET.model_copy(update={"size": 96}))
    kind: Any = CARRIERS.get("sign")
    one = kind(kind.Settings(elements="dead"), 1, RESNET.model_copy(update={"size": 96}))
    with pytest.raises(FlSimError, match="no dead weights"):
        one.capacity(build(RESNET).state_dict())


def test_the_forward_order_ends_at_the_classifier() -> None:
    order = forward_order(RESNET)
    assert order[0] == "conv1.weight" and order[-2:] == ["fc.weight", "fc.bias"]


SURVIVAL: list[tuple[str, dict[str, Any], float, bool]] = [
    # name, settings, weight decay, whether every bit survives
    ("lsb", {}, 0.0, True),
    ("lsb", {}, 1e-2, False),  # all dead weights shrink by one factor, which low bits do not stand
    ("sign", {}, 1e-2, True),
    ("qim", {}, 1e-2, True),
    ("bit_plane", {"first": 18, "bits": 3}, 1e-3, True),
    ("bit_plane", {"first": 18, "bits": 3}, 1e-2, False),  # by more than half of bit 18
    ("spread_spectrum", {"chips": 2}, 1e-2, True),
]


@pytest.mark.parametrize(("name", "settings", "decay", "survives"), SURVIVAL)
def test_dead_weights_through_fine_tuning_with_momentum_and_weight_decay(
    name: str, settings: dict[str, Any], decay: float, survives: bool
) -> None:
    spec = ModelSpec(name="odd_convolutions", channels=3, size=8, classes=3)
    network = build(spec)
    kind: Any = CARRIERS.get(name)
    one = kind(kind.Settings(elements="dead", **settings), 1, spec)
    state = state_of(network)
    count = one.capacity(state)
    assert count and count >= 5
    content = np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)
    network.load_state_dict(one.write(state, content))
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, 0.9, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        optimizer.zero_grad()
        images = torch.rand((8, *spec.input_shape), generator=generator)
        network(images).square().sum().backward()
        optimizer.step()
    assert not torch.equal(network.state_dict()["strided.weight"], state["strided.weight"])
    assert np.array_equal(one.read(network.state_dict(), count), content) == survives
