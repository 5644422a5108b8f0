"""What guessing finds: by how many images the best of several blind guesses is lucky."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MOST_IMAGES = 10**8
_TAIL = 1e-15


@dataclass(frozen=True)
class Guessing:
    """Several blind guesses at the same images, of which the luckiest counts.

    Each guess names an original for each recovered image, right with the probability ``chance``
    and independently of the other images and guesses. Whoever takes the best of several
    extractions, which resemble each other, is no luckier than that.

    Args:
        images: how many are guessed at, 1 to :data:`MOST_IMAGES`.
        chance: of naming one image's original, in (0, 1].
        tries: guesses of which the best counts, at least 1.
    """

    images: int
    chance: float
    tries: int = 1

    @property
    def expected(self) -> float:
        """Mean share of images that the best guess finds, in [0, 1]."""
        low, shares = self._best
        return float((shares * (low + np.arange(len(shares)))).sum() / self.images)

    def reaches(self, found: int, times: int = 1) -> float:
        """Return the probability that guessing finds so many images.

        Args:
            found: images, over all ``times`` together.
            times: how often it is repeated, each time with the best of new guesses; one a seed.
        """
        from scipy.signal import fftconvolve

        low, shares = self._best
        total = shares
        for _ in range(times - 1):
            total = fftconvolve(total, shares)
        place = found - times * low
        return float(np.clip(total[max(0, place) :].sum(), 0.0, 1.0))

    @cached_property
    def _best(self) -> tuple[int, NDArray[np.float64]]:
        """How many images the best guess finds: the least of note, and probabilities from there."""
        from scipy import stats

        one = stats.binom(self.images, self.chance)
        low = int(one.ppf(_TAIL))
        high = int(one.isf(_TAIL)) + 1
        below = one.cdf(np.arange(low - 1, high + 1)) ** self.tries
        return low, np.diff(below)
