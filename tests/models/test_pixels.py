"""How networks from elsewhere take pixels."""

from typing import Any

import pytest
import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec, build
from fl_sim.models.pixels import NORMALIZATIONS, normalization, take_pixels


def test_names_pairs_and_texts() -> None:
    assert normalization("imagenet", 3) == NORMALIZATIONS["imagenet"]
    assert normalization(None, 1) == normalization("none", 1) == ((0.0,), (1.0,))
    assert normalization((0.1, [0.2, 0.3, 0.4]), 3) == ((0.1,), (0.2, 0.3, 0.4))
    assert normalization("0.1,0.2", 3) == ((0.1,), (0.2,))
    assert normalization("1,2,3,4,5,6", 3) == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    ("wrong", "channels", "said"),
    [
        ("imagenett", 3, "imagenet"),
        ("imagenet", 1, "3 numbers where images have 1"),
        ((0.5, 0), 3, "divides by 0"),
        ("1,2,3", 3, "3 numbers"),
        ("a,b", 3, "not numbers"),
        (5, 3, "a pair of mean and deviation"),
        (("a", "b"), 3, "not numbers"),
    ],
)
def test_what_is_no_normalization(wrong: Any, channels: int, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        normalization(wrong, channels)


def test_pixels_are_mapped_before_the_network_sees_them() -> None:
    mean, std = NORMALIZATIONS["imagenet"]
    spec = ModelSpec(name="x", channels=3, size=4, classes=2, mean=mean, std=std)
    network = nn.Identity()
    take_pixels(network, spec)
    pixels = torch.rand(2, 3, 4, 4)
    wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(network(pixels * 2 - 1), wanted, atol=1e-6)


def test_a_built_network_maps_them_and_the_usual_ones_leave_no_trace_in_a_file() -> None:
    usual = ModelSpec(name="mlp", channels=1, size=8, classes=2)
    other = usual.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    pixels = torch.rand(2, 1, 8, 8)
    one, two = build(usual).eval(), build(other).eval()
    assert torch.allclose(one(pixels), two(pixels * 2 - 1), atol=1e-5)
    assert "mean" not in usual.model_dump_json() and "mean" in other.model_dump_json()
