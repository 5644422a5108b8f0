"""What guessing finds, against counting it out."""

import itertools

import numpy as np
import pytest

from fl_sim.metrics.guessing import MOST_IMAGES, Guessing


@pytest.mark.parametrize(("images", "chance", "tries"), [(3, 1 / 3, 1), (3, 1 / 3, 3), (2, 0.5, 4)])
def test_small_cases_are_as_counted_out(images: int, chance: float, tries: int) -> None:
    one = {0: 0.0}
    for lucky in itertools.product((0, 1), repeat=images):
        hits = sum(lucky)
        share = chance**hits * (1 - chance) ** (images - hits)
        one[hits] = one.get(hits, 0.0) + share
    best = np.zeros(images + 1)
    for guesses in itertools.product(one, repeat=tries):
        best[max(guesses)] += np.prod([one[hits] for hits in guesses])
    guessing = Guessing(images, chance, tries)
    assert guessing.expected == pytest.approx((best * np.arange(images + 1)).sum() / images)
    for found in range(images + 1):
        assert guessing.reaches(found) == pytest.approx(best[found:].sum())
    twice = np.convolve(best, best)
    for found in range(2 * images + 1):
        assert guessing.reaches(found, 2) == pytest.approx(twice[found:].sum(), abs=1e-12)


def test_the_readmes_figures() -> None:
    assert round(Guessing(64, 1 / 64).expected, 3) == 0.016
    assert round(Guessing(64, 1 / 64, 6).expected, 3) == 0.037
    assert round(Guessing(32, 1 / 32, 6).expected, 2) == 0.07


def test_draws_agree() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.05, size=(20_000, 3, 8)).max(axis=2)
    guessing = Guessing(200, 0.05, 8)
    assert guessing.expected == pytest.approx(draws.mean() / 200, rel=5e-3)
    assert guessing.reaches(55, 3) == pytest.approx((draws.sum(axis=1) >= 55).mean(), abs=0.015)


def test_ends_and_large_numbers() -> None:
    assert Guessing(1, 1.0, 3).expected == pytest.approx(1.0)
    assert Guessing(64, 1 / 64, 6).reaches(0, 5) == pytest.approx(1.0)
    assert Guessing(64, 1 / 64, 6).reaches(65) == 0.0
    # More than a histogram of all counts would fit in memory.
    assert Guessing(MOST_IMAGES, 0.5, 2).expected == pytest.approx(0.5, abs=1e-3)
