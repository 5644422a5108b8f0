"""Branches on a shared encoder's features: shapes, tracing, and training from nothing."""

import pytest
import torch
from torch import nn

from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset
from fl_sim.errors import FlSimError
from fl_sim.models import layers
from fl_sim.models.branches import ClassificationBranch, SegmentationBranch
from fl_sim.randomness import seeded

SETTINGS = {"size": 32, "train": 320, "validation": 2, "test": 80, "difficulty": 0.1}


@pytest.mark.parametrize("side", [1, 2, 5])
def test_an_image_has_its_logits(side: int) -> None:
    branch = ClassificationBranch(24, 5)
    assert branch(torch.rand(3, 24, side, side)).shape == (3, 5)


@pytest.mark.parametrize(
    ("stride", "size", "side"), [(16, 28, 2), (16, 64, 4), (8, 30, 4), (1, 9, 9)]
)
def test_every_pixel_has_its_logits(stride: int, size: int, side: int) -> None:
    branch = SegmentationBranch(24, 3, size, stride)
    assert branch(torch.rand(3, 24, side, side)).shape == (3, 3, size, size)


def test_padding_is_cut_off_at_the_bottom_and_the_right() -> None:
    branch = SegmentationBranch(4, 2, 32).eval()
    smaller = SegmentationBranch(4, 2, 20).eval()
    smaller.load_state_dict(branch.state_dict())
    features = torch.rand(2, 4, 2, 2)
    assert torch.equal(smaller(features), branch(features)[:, :, :20, :20])


def test_other_strides_are_refused() -> None:
    with pytest.raises(FlSimError, match="must be a power of two, not 12"):
        SegmentationBranch(4, 2, 32, 12)


class Network(nn.Sequential):
    """An encoder of stride 16 as a codec has one, never trained, and a branch."""

    def __init__(self, branch: nn.Module) -> None:
        steps: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 16), (16, 16), (16, 24)):
            steps += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), nn.ReLU()]
        super().__init__(*steps[:-1], branch)


@pytest.mark.parametrize("kind", [ClassificationBranch, SegmentationBranch])
def test_a_traced_graph_shows_each_layer(kind: type[nn.Module]) -> None:
    branch = (
        ClassificationBranch(24, 4)
        if kind is ClassificationBranch
        else SegmentationBranch(24, 3, 32)
    )
    network = Network(branch)
    blocks = layers(network, (3, 32, 32), "block")
    listed = [p for block in blocks for p in block.parameters]
    assert listed == [name for name, _ in network.named_parameters()]
    assert len(blocks) == 4 + (3 if kind is ClassificationBranch else 6)


def trained(
    dataset: Dataset, branch: type[nn.Module], scale: float
) -> tuple[list[float], nn.Module]:
    """Train on raw features of another scale, as a codec's are; return the losses."""
    with seeded(0, "test"):
        outputs = dataset.task.outputs
        network = Network(
            SegmentationBranch(24, outputs, 32)
            if branch is SegmentationBranch
            else ClassificationBranch(24, outputs)
        )
        order = torch.randperm(320)
    with torch.no_grad():
        network[6].weight.mul_(scale)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    images, labels = dataset.train.tensors()
    losses = []
    for _ in range(6):
        for rows in order.split(32):
            optimizer.zero_grad()
            loss = dataset.task.loss(network(images[rows] * 2 - 1), labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses, network.eval()


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_organs_are_learnt_from_an_untrained_encoder(scale: float) -> None:
    dataset = load_dataset("phantoms", {"task": "segmentation", **SETTINGS})
    losses, network = trained(dataset, SegmentationBranch, scale)
    assert losses[-1] < 0.6 * losses[0]
    images, masks = dataset.test.tensors()
    with torch.no_grad():
        found = network(images * 2 - 1).argmax(1)
    lungs = 2 * ((found == 1) & (masks == 1)).sum() / ((found == 1).sum() + (masks == 1).sum())
    assert float(lungs) > 0.6


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_lesions_are_learnt_from_an_untrained_encoder(scale: float) -> None:
    dataset = load_dataset("phantoms", {"task": "binary", **SETTINGS})
    losses, network = trained(dataset, ClassificationBranch, scale)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    images, labels = dataset.test.tensors()
    with torch.no_grad():
        right = (network(images * 2 - 1).argmax(1) == labels).float().mean()
    assert float(right) > 0.65
