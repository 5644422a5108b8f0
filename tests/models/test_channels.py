"""Permutation and rescaling of hidden channels: the same answers from other weights."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.models import build_model
from fl_sim.models.channels import ChannelGroup, channel_groups, permutable_share, permute
from fl_sim.models.rescaling import rescale, rescalings

# Name, stem, size, share of parameters that can be permuted, layers that can be rescaled.
CASES = [
    ("resnet18", "default", 16, 0.999, 20),
    ("densenet121", "small", 16, 0.999, 59),
    ("vgg11", "small", 16, 0.999, 9),
    ("cnn", "default", 16, 0.999, 4),
    ("mlp", "default", 8, 0.999, 3),
    ("vit", "default", 16, 0.59, 0),
    ("unet", "default", 16, 0.96, 0),
]


def _lively(model: nn.Module) -> nn.Module:
    """Give normalisations other values than those they start with, tiny variances among them."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(1e-4, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()


def _shuffle(model: nn.Module, groups: list[ChannelGroup], generator: torch.Generator) -> None:
    orders = [torch.randperm(group.channels, generator=generator).numpy() for group in groups]
    permute(model.state_dict(), groups, orders)


def _assert_same(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> None:
    assert ((first - second).abs().max() / first.abs().max()).item() < tolerance


@pytest.mark.parametrize(("name", "stem", "size", "share", "scalable"), CASES)
def test_answers_stay_and_weights_move(
    name: str, stem: str, size: int, share: float, scalable: int
) -> None:
    settings = {"channels": (4, 8, 16)} if name == "unet" else None
    model = _lively(build_model(name, 3, size, 5, stem, settings=settings))
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, size, size, generator=generator)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        answers = model(images)
        groups = channel_groups(model, (3, size, size))
        _shuffle(model, groups, generator)
        _assert_same(answers, model(images), 1e-5)
        after = model.state_dict()
        moved = sum(int((after[n] != before[n]).sum()) for n, _ in model.named_parameters())
        total = sum(p.numel() for p in model.parameters())
        assert permutable_share(model, groups) >= share
        assert moved / total > 0.9 * share
        for n in before:  # nothing but places has changed
            sums = before[n].double().square().sum(), after[n].double().square().sum()
            torch.testing.assert_close(*sums)
        found = rescalings(model, (3, size, size))
        assert len(found) == scalable
        for where in found:
            factors = torch.rand(where.channels, generator=generator).double() * 3 + 0.3
            rescale(model.state_dict(), where, factors)
        _assert_same(answers, model(images), 1e-4)


def test_the_groups_of_resnet18_are_its_stages_and_the_inside_of_its_blocks() -> None:
    groups = channel_groups(build_model("resnet18", 3, 16, 7), (3, 16, 16))
    sizes = sorted(group.channels for group in groups)
    assert sizes == sorted([64, 128, 256, 512] + 2 * [64, 128, 256, 512])
    stage = next(g for g in groups if any(s.tensor == "conv1.weight" for s in g.slices))
    places = {(s.tensor, s.dim) for s in stage.slices}
    assert {
        ("conv1.weight", 0),
        ("bn1.running_var", 0),
        ("layer1.0.conv1.weight", 1),
        ("layer1.0.conv2.weight", 0),
        ("layer1.1.bn2.bias", 0),
        ("layer2.0.conv1.weight", 1),
        ("layer2.0.downsample.0.weight", 1),
    } <= places
    assert ("layer1.0.conv1.weight", 0) not in places
    head = [s for g in groups for s in g.slices if s.tensor == "fc.weight"]
    assert [(s.dim, s.positions.shape) for s in head] == [(1, (1, 512))]


def test_flattening_spreads_each_channel_over_its_pixels() -> None:
    groups = channel_groups(build_model("cnn", 1, 16, 3), (1, 16, 16))
    columns = next(s for g in groups for s in g.slices if s.tensor == "11.weight" and s.dim == 1)
    assert columns.positions.shape == (16, 64)
    assert columns.positions[3, 5] == 5 * 16 + 3


class _Tricky(nn.Module):
    """A grouped normalisation, a depthwise convolution, a layer used twice, and one unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.slope = nn.PReLU(8)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(torch.relu(self.norm(self.first(x))))
        x = self.slope(self.twice(self.twice(x)))
        x = torch.cat([x, x * self.grouped(torch.roll(x, 1, dims=1))], 1)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_what_ties_channels_down_is_respected(seed: int) -> None:
    model = _Tricky().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.norm.weight.normal_(generator=generator)
        model.slope.weight.normal_(generator=generator)
        images = torch.rand(2, 3, 6, 6, generator=generator)
        answers = model(images)
        _shuffle(model, channel_groups(model, (3, 6, 6)), generator)
        _assert_same(answers, model(images), 1e-5)


class _SumOfParts(nn.Module):
    """A concatenation added to the output of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
        self.both = nn.Conv2d(3, 12, 3)
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.one(x), self.two(x)], dim=1) + self.both(x)
        return self.last(torch.relu(joined).mean((2, 3)))


def test_a_sum_with_a_concatenation_ties_each_part_down() -> None:
    model = _SumOfParts().eval()
    images = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        answers = model(images)
        groups = channel_groups(model, (3, 6, 6))
        permute(model.state_dict(), groups, [np.arange(g.channels)[::-1] for g in groups])
        _assert_same(answers, model(images), 1e-5)


class _Pair(nn.Module):
    """Channels of two sources added, and one of them concatenated with the sum, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(2, 24)
        self.last = nn.Linear(24 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.one(x), self.two(x)
        joined = torch.cat([one, one + two, two], 1)
        return self.last(torch.flatten(self.norm(joined), 1))


def test_a_channel_that_comes_several_times_keeps_its_copies_apart() -> None:
    model = _Pair().eval()
    images = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        answers = model(images)
        groups = channel_groups(model, (3, 6, 6))
        assert groups and all(group.channels <= 8 for group in groups)
        permute(model.state_dict(), groups, [np.arange(g.channels)[::-1] for g in groups])
        _assert_same(answers, model(images), 1e-5)
    assert permutable_share(model, groups) > 0.9
