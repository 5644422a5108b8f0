"""Class representatives: the network takes them for their class, and a prior keeps them images."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Task
from fl_sim.errors import FlSimError
from fl_sim.inversion.search import (
    STATISTICS,
    VARIATION,
    InversionSettings,
    invert,
    total_variation,
)
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import normalized

SPEC = ModelSpec(name="cnn", channels=1, size=8, classes=2)
TASK = Task("binary-class", ("left", "right"))
SHORT = InversionSettings(images=6, steps=150, shift=0)


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright half, left or right, on a dark ground."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = 0.2 + 0.1 * torch.rand(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * int(label) : 4 * int(label) + 4] += 0.5
    return images, labels


def _network(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 2))


@pytest.fixture(scope="module", params=[True, False], ids=["norm", "plain"])
def trained(request: pytest.FixtureRequest) -> nn.Module:
    network = _network(request.param)
    images, labels = _images(64)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(normalized(images)), labels).backward()
        optimizer.step()
    return network.eval()


def test_the_network_takes_them_for_their_class(trained: nn.Module) -> None:
    found = invert(trained, SPEC, TASK, SHORT, Stream(1))
    assert found.images.shape == (12, 1, 8, 8)
    assert found.labels.tolist() == [0] * 6 + [1] * 6
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    with torch.no_grad():
        answers = trained(normalized(found.images)).softmax(dim=1)
    np.testing.assert_allclose(
        found.sure, answers.gather(1, found.labels[:, None])[:, 0], atol=1e-5
    )
    assert np.mean(found.losses[-10:]) < found.losses[0]
    assert found.prior == (STATISTICS if isinstance(trained[1], nn.BatchNorm2d) else VARIATION)


def test_classes_that_views_do_not_confuse_are_found() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():  # the brighter, the more the second class
        network[1].weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]) / 8)
        network[1].bias.zero_()
    found = invert(network, SPEC, TASK, SHORT, Stream(0))
    assert float(found.sure.min()) > 0.9
    assert float(found.images[:6].mean()) < 0.4 < 0.6 < float(found.images[6:].mean())


def _distance(network: nn.Module, images: torch.Tensor) -> float:
    """How far the one layer's input is from its running statistics, written out."""
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        given = network[0](normalized(images)).numpy()
    mean = given.mean(axis=(0, 2, 3)) - norm.running_mean.numpy()
    variance = given.var(axis=(0, 2, 3)) - norm.running_var.numpy()
    return float(np.sqrt((mean**2).sum()) + np.sqrt((variance**2).sum()))


def test_the_prior_brings_features_to_what_they_were_in_training() -> None:
    network = _network(norm=True)
    images, labels = _images(64)
    for _ in range(60):
        nn.functional.cross_entropy(network(normalized(images)), labels)  # settles the statistics
    network.eval()
    settings = SHORT.model_copy(update={"statistics": 1.0})
    with_prior = invert(network, SPEC, TASK, settings, Stream(0))
    without = invert(network, SPEC, TASK, SHORT.model_copy(update={"statistics": 0.0}), Stream(0))
    assert _distance(network, with_prior.images) < 0.3 * _distance(network, without.images)
    assert without.prior == VARIATION


def test_the_objective_is_the_sum_that_the_paper_has() -> None:
    network = _network(norm=True).eval()
    settings = InversionSettings(images=2, steps=1, shift=0, statistics=0.7)
    found = invert(network, SPEC, TASK, settings, Stream(3))
    start = torch.randn((4, 1, 8, 8), generator=Stream(3).torch_generator("inversion start"))
    images = (0.5 * start).sigmoid()
    generator = Stream(3).numpy("inversion views")
    generator.integers(0, 1, 2)
    view = images.flip(3) if generator.random() < 0.5 else images
    with torch.no_grad():
        entropy = nn.functional.cross_entropy(network(normalized(view)), found.labels)
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    expected = (
        float(entropy)
        + settings.variation * float(down + across)
        + settings.norm * float(((images - 0.5) ** 2).mean())
        + 0.7 * _distance(network, view)
    )
    assert found.losses[0] == pytest.approx(expected, rel=1e-4)
    assert float(total_variation(images)) == pytest.approx(float(down + across))


def test_the_network_is_left_as_it_was(trained: nn.Module) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.train()
    invert(trained, SPEC, TASK, SHORT.model_copy(update={"steps": 3}), Stream(0))
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert not any(module._forward_pre_hooks for module in trained.modules())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    trained.eval()


def test_the_same_seed_gives_the_same_images(trained: nn.Module) -> None:
    short = SHORT.model_copy(update={"steps": 5})
    first, second, other = (invert(trained, SPEC, TASK, short, Stream(s)) for s in (0, 0, 1))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_of_several_labels_each_is_looked_for_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    found = invert(network, SPEC, Task(MULTI_LABEL, ("a", "b")), SHORT, Stream(0))
    with torch.no_grad():
        scores = network(normalized(found.images)).sigmoid()
    assert float(scores[:6, 0].mean()) > 0.7 > 0.3 > float(scores[:6, 1].mean())


def test_what_cannot_be_inverted_is_refused(trained: nn.Module) -> None:
    with pytest.raises(FlSimError, match="for classifiers"):
        invert(trained, SPEC, Task(SEGMENTATION, ("a", "b")), SHORT, Stream(0))
    with pytest.raises(FlSimError, match="4096 together at most"):
        invert(trained, SPEC, TASK, InversionSettings(images=4000), Stream(0))
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        broken[1].weight.fill_(float("nan"))
    with pytest.raises(FlSimError, match="not finite"):
        invert(broken, SPEC, TASK, SHORT, Stream(0))
