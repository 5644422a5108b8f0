"""What representatives show: of training images all, of public ones and noise nothing."""

import numpy as np
import pytest
import torch

from fl_sim.data.base import Split
from fl_sim.errors import FlSimError
from fl_sim.inversion.measured import CHANCE, shown
from fl_sim.inversion.search import VARIATION, Inversion
from fl_sim.metrics.leakage import ssim
from fl_sim.randomness import Stream


def _split(seed: int, images: int = 24) -> Split:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (images, 16, 16, 1), dtype=np.uint8)
    return Split(pixels, np.arange(images) % 2)


def _inversion(images: torch.Tensor, labels: torch.Tensor) -> Inversion:
    return Inversion(images, labels, VARIATION, torch.ones(len(images)), [0.0], 0.0)


TRAIN, PUBLIC = _split(0), _split(1)


def _taken(split: Split, other_class: bool = False) -> Inversion:
    images, labels = split.tensors()
    return _inversion(images[:8], 1 - labels[:8] if other_class else labels[:8])


def test_training_images_are_told_from_public_ones() -> None:
    own = shown(_taken(TRAIN), TRAIN, PUBLIC, Stream(0))
    assert own.ssim == pytest.approx(1.0) and own.trained_on == 1.0 and own.images == 8
    assert own.random < 0.5
    other = shown(_taken(PUBLIC), TRAIN, PUBLIC, Stream(0))
    assert other.ssim < 0.5 and other.trained_on == 0.0


def test_only_images_of_the_class_count() -> None:
    swapped = shown(_taken(TRAIN, other_class=True), TRAIN, PUBLIC, Stream(0))
    assert swapped.ssim < 0.5


def test_noise_is_as_near_to_public_images() -> None:
    draw = torch.Generator().manual_seed(5)
    noise = _inversion(torch.rand(200, 1, 16, 16, generator=draw), torch.arange(200) % 2)
    told = shown(noise, TRAIN, PUBLIC, Stream(0))
    assert abs(told.trained_on - CHANCE) < 0.12
    assert abs(told.ssim - told.random) < 0.05


def test_it_is_the_nearest_image_and_the_floors_are_in_the_same_place() -> None:
    draw = torch.Generator().manual_seed(5)
    found = _inversion(torch.rand(4, 1, 16, 16, generator=draw), torch.tensor([0, 0, 1, 1]))
    told = shown(found, TRAIN, PUBLIC, Stream(0))
    train, labels = TRAIN.tensors()
    public, public_labels = PUBLIC.tensors()
    means = []
    for image, label, value in zip(found.images, found.labels, told.nearest, strict=True):
        seen = train[labels == label]
        each = [float(ssim(image[None], one[None])) for one in seen]
        assert float(value) == pytest.approx(max(each), abs=1e-5)
        mean = public[public_labels == label].mean(dim=0, keepdim=True)
        means.append(max(float(ssim(mean, one[None])) for one in seen))
    assert told.class_mean == pytest.approx(np.mean(means), abs=1e-5)
    assert told.ssim == pytest.approx(float(told.nearest.mean()))


def test_as_many_public_as_training_images_are_compared_with() -> None:
    many = _split(2, images=240)
    draw = torch.Generator().manual_seed(5)
    noise = _inversion(torch.rand(120, 1, 16, 16, generator=draw), torch.arange(120) % 2)
    told = shown(noise, many, PUBLIC, Stream(0))
    assert abs(told.trained_on - CHANCE) < 0.2  # ten times as many would nearly always be nearer


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FlSimError, match="training images have shape"):
        shown(_inversion(torch.zeros(2, 1, 8, 8), torch.arange(2)), TRAIN, PUBLIC, Stream(0))
    lone = Split(PUBLIC.images, np.full(24, 7))
    with pytest.raises(FlSimError, match="No class"):
        shown(_taken(TRAIN), TRAIN, lone, Stream(0))
