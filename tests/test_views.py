"""Views of images: orientations, mixtures, and the labels that go with them."""

import numpy as np
import pytest
import torch

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import (
    WHOLE_RUN,
    LocalTraining,
    TrainingSettings,
    Window,
    rate_factor,
    train,
)
from fl_sim.views import label_shares, labelled_view, shares_loss, view

TWO = Task("binary-class", ("black", "white"))
MASKS = Task(SEGMENTATION, ("background", "organ"))


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_views_reach_all_orientations_and_mixtures_stay_between() -> None:
    image = torch.arange(4.0).reshape(1, 1, 2, 2) / 3
    many = image.expand(800, 1, 2, 2)
    classes = torch.eye(2)[torch.arange(800) % 2]
    for orientations, kinds_there_are in (("none", 1), ("flip", 2), ("square", 8)):
        seen, _ = view(many, classes, orientations, 0.0, _generator())
        kinds, counts = seen.flatten(1).unique(dim=0, return_counts=True)
        assert len(kinds) == kinds_there_are
        assert counts.min() > 60
    mixed, _ = view(torch.rand(64, 1, 4, 4), classes[:64], "square", 1.0, _generator())
    assert mixed.min() >= 0
    assert mixed.max() <= 1


def test_labels_are_mixed_as_images_are_and_masks_turn_with_them() -> None:
    black_or_white = torch.arange(64) % 2
    pixels = black_or_white.float().reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    asked, truth = labelled_view(pixels, black_or_white, TWO, "square", 1.0, _generator())
    torch.testing.assert_close(asked.mean((1, 2, 3)), truth[:, 1])
    assert ((truth > 0.1) & (truth < 0.9)).any()
    masks = torch.randint(0, 2, (64, 4, 4), generator=torch.Generator().manual_seed(0))
    shown = masks[:, None].float()
    asked, truth = labelled_view(shown, masks, MASKS, "square", 1.0, _generator())
    torch.testing.assert_close(asked[:, 0], truth[:, 1])
    asked, turned = labelled_view(shown, masks, MASKS, "square", 0.0, _generator())
    assert not torch.equal(turned, masks)
    assert turned.dtype == torch.int64
    torch.testing.assert_close(asked[:, 0], turned.float())


@pytest.mark.parametrize("kind", ["multi-class", MULTI_LABEL])
def test_unmixed_shares_are_the_labels(kind: str) -> None:
    task = Task(kind, ("a", "b", "c"))
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3
    if kind == MULTI_LABEL:
        labels = torch.nn.functional.one_hot(labels, 3)
    shares = label_shares(labels, task)
    torch.testing.assert_close(shares_loss(logits, shares, task), task.loss(logits, labels))


def test_a_cosine_rises_and_falls_over_all_rounds() -> None:
    factors = [rate_factor("cosine", step, 400) for step in range(400)]
    assert factors[0] < 0.03
    assert max(factors) == max(factors[45:55]) > 0.95
    assert factors[-1] < 1e-4
    assert {rate_factor("constant", step, 400) for step in range(400)} == {1.0}


def _trained(window: Window = WHOLE_RUN, **settings: object) -> dict[str, torch.Tensor]:
    spec = ModelSpec(name="cnn", channels=1, size=16, classes=2)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (32, 16, 16, 1), dtype=np.uint8)
    data = Split(images, generator.integers(0, 2, 32))
    model = build(spec, 0)
    values = parse(TrainingSettings, {"epochs": 2, "batch_size": 16, **settings}, "[training]")
    train(LocalTraining(model, spec, data, TWO, values, Stream(0), window))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_training_is_shown_views_and_follows_its_schedule() -> None:
    plain = _trained()
    for changes in ({"views": "square"}, {"mixup": 1.0}, {"schedule": "cosine"}):
        other = _trained(**changes)
        assert any(not torch.equal(plain[name], other[name]) for name in plain), changes
    # The second of two rounds is later on the cosine than the first.
    early, late = (_trained(Window(a, b), schedule="cosine") for a, b in ((0, 0.5), (0.5, 1)))
    start = build(ModelSpec(name="cnn", channels=1, size=16, classes=2), 0)
    first = dict(start.named_parameters())
    moved = [
        sum(float((s[n] - first[n]).detach().abs().sum()) for n in first) for s in (early, late)
    ]
    assert moved[0] != moved[1]


def test_private_training_takes_images_as_they_are() -> None:
    with pytest.raises(FlSimError, match="leave out views and mixup"):
        parse(TrainingSettings, {"dp": {"noise_multiplier": 1.0}, "mixup": 0.5}, "[training]")
