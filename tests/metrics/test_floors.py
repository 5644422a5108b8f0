"""Floors against their definitions, written out as loops."""

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.floors import floor_class_mean, floor_mean, floor_random
from fl_sim.metrics.leakage import ssim


def images(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


def test_mean_floor_is_the_mean_public_image() -> None:
    originals, public = images(5, 0), images(9, 1)
    expected = [float(ssim(public.mean(0)[None], image[None])) for image in originals]
    torch.testing.assert_close(floor_mean(ssim, originals, public), torch.tensor(expected))


@pytest.mark.parametrize("multi_label", [False, True])
def test_class_mean_floor_falls_back_to_the_mean(multi_label: bool) -> None:
    originals, public = images(4, 0), images(6, 1)
    labels = torch.tensor([0, 1, 2, 1])
    public_labels = torch.tensor([0, 0, 1, 1, 1, 3])
    if multi_label:
        codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        labels_given, public_given = codes[labels], codes[public_labels]
    else:
        labels_given, public_given = labels, public_labels
    expected = []
    for image, label in zip(originals, labels, strict=True):
        same = public[public_labels == label]
        guess = same.mean(0) if len(same) else public.mean(0)
        expected.append(float(ssim(guess[None], image[None])))
    values = floor_class_mean(ssim, originals, public, labels_given, public_given)
    torch.testing.assert_close(values, torch.tensor(expected))


def test_class_mean_floor_needs_a_label_an_image() -> None:
    with pytest.raises(FlSimError, match="one an image"):
        floor_class_mean(ssim, images(2, 0), images(3, 1), torch.tensor([0]), torch.zeros(3))


def test_random_floor_is_near_the_mean_over_all_pairs_and_repeats() -> None:
    originals, public = images(6, 0), images(8, 1)
    pairs = [[float(ssim(p[None], o[None])) for p in public] for o in originals]
    values = floor_random(ssim, originals, public, seed=0, draws=400)
    torch.testing.assert_close(values, torch.tensor(pairs).mean(1), atol=0.04, rtol=0)
    assert torch.equal(
        floor_random(ssim, originals, public, 3), floor_random(ssim, originals, public, 3)
    )
    assert not torch.equal(
        floor_random(ssim, originals, public, 3), floor_random(ssim, originals, public, 4)
    )


def test_random_floor_never_draws_the_stolen_image() -> None:
    originals = images(3, 0)
    stranger = images(1, 5)
    values = floor_random(ssim, originals, torch.cat([originals, stranger]), seed=0)
    torch.testing.assert_close(values, ssim(stranger.expand_as(originals), originals))
    with pytest.raises(FlSimError, match="stolen"):
        floor_random(ssim, originals, originals, seed=0)


def test_floors_need_public_images_of_the_same_shape() -> None:
    for public in (torch.rand(0, 3, 16, 16), torch.rand(2, 1, 16, 16)):
        with pytest.raises(FlSimError, match="Public images"):
            floor_mean(ssim, images(2, 0), public)
