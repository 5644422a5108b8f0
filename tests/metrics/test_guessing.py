"""What guessing finds, against counting it out."""

import itertools

import numpy as np
import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.guessing import MOST_IMAGES, Guessing, blind_guessing, guessing


def pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def counted_out(chances: list[float], tries: int) -> np.ndarray:
    """Return the probability of each number of images that the best guess finds, by counting."""
    one = np.zeros(len(chances) + 1)
    for lucky in itertools.product((0, 1), repeat=len(chances)):
        share = np.prod([c if hit else 1 - c for c, hit in zip(chances, lucky, strict=True)])
        one[sum(lucky)] += share
    best = np.zeros(len(one))
    for guesses in itertools.product(range(len(one)), repeat=tries):
        best[max(guesses)] += np.prod(one[list(guesses)])
    return best


@pytest.mark.parametrize(
    ("groups", "tries"),
    [
        (((3, 3.0),), 1),
        (((3, 3.0),), 3),
        (((2, 2.0),), 4),
        (((3, 3.0), (2, 2.0), (1, 1.0)), 2),
    ],
)
def test_small_cases_are_as_counted_out(groups: tuple[tuple[int, float], ...], tries: int) -> None:
    best = counted_out([1 / c for n, c in groups for _ in range(n)], tries)
    found = Guessing(groups, tries)
    images = len(best) - 1
    assert found.images == images
    assert found.expected == pytest.approx((best * np.arange(images + 1)).sum() / images)
    high = next(k for k in range(images + 1) if best[: k + 1].sum() >= 0.975)
    assert found.high == pytest.approx(high / images)


def test_the_readmes_figures() -> None:
    assert round(blind_guessing(64, 1 / 64).expected, 3) == 0.016
    assert round(blind_guessing(64, 1 / 64, 6).expected, 3) == 0.037
    assert round(blind_guessing(32, 1 / 32, 6).expected, 2) == 0.07


def test_who_knows_the_classes_guesses_among_their_images_only() -> None:
    # The seven classes of DermaMNIST in 64 images, as rare as they are there.
    labels = torch.tensor([0] * 2 + [1] * 3 + [2] * 7 + [3] * 1 + [4] * 7 + [5] * 43 + [6] * 1)
    knowing, blind = guessing(pictures(64), labels), guessing(pictures(64))
    assert blind.expected == pytest.approx(1 / 64)
    assert knowing.expected == pytest.approx(7 / 64)  # one a class
    # Label vectors are classes of their own.
    vectors = torch.eye(7, dtype=torch.int64)[labels]
    assert guessing(pictures(64), vectors).expected == pytest.approx(7 / 64)
    # Against drawing it: each image gets one of its class, the best of six draws counts.
    draws = np.random.default_rng(0)
    hits = np.zeros((2000, 6))
    for kind in range(7):
        count = int((labels == kind).sum())
        hits += draws.binomial(count, 1 / count, hits.shape)
    best = hits.max(axis=1) / 64
    six = guessing(pictures(64), labels, tries=6)
    assert six.expected == pytest.approx(best.mean(), abs=3e-3)
    assert abs(six.high - np.quantile(best, 0.975)) <= 1 / 64 + 1e-9
    with pytest.raises(FlSimError, match="2 labels for 64"):
        guessing(pictures(64), labels[:2])


def test_identical_originals_are_one_candidate() -> None:
    originals = pictures(4)
    originals[1] = originals[0]
    assert guessing(originals).expected == pytest.approx(1 / 3)
    assert guessing(originals, torch.tensor([0, 0, 1, 1])).expected == pytest.approx((2 + 1) / 4)


def test_draws_agree() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.05, size=(20_000, 8)).max(axis=1)
    found = blind_guessing(200, 0.05, 8)
    assert found.expected == pytest.approx(draws.mean() / 200, rel=5e-3)
    assert found.high == pytest.approx(np.quantile(draws, 0.975) / 200, abs=1 / 200)


def test_ends_and_large_numbers() -> None:
    assert blind_guessing(1, 1.0, 3).expected == blind_guessing(1, 1.0, 3).high == 1.0
    assert 0 <= blind_guessing(MOST_IMAGES, 1 / MOST_IMAGES, 6).expected < 1e-6
    assert blind_guessing(MOST_IMAGES, 0.5, 2).expected == pytest.approx(0.5, abs=1e-3)


def test_the_binomial_distribution_is_scipys() -> None:
    from scipy import stats

    from fl_sim.metrics.guessing import _binomial

    for n, chance in ((1, 0.3), (64, 1 / 64), (6751, 1 / 6751), (10**6, 0.2)):
        low, shares = _binomial(n, chance)
        expected = stats.binom(n, chance).pmf(low + np.arange(len(shares)))
        np.testing.assert_allclose(shares, expected, rtol=1e-6, atol=1e-14)
        assert low + len(shares) - 1 <= n
