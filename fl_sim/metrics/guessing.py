"""What guessing finds: by how many images the best of several guesses is lucky.

Identification has a floor that no model is needed for. Whoever tries several extractions and takes
the best has several guesses; whoever holds a key that tells each image's label guesses among the
images of that label only. ``identification_floor`` is the mean of what the best guess finds, and
``identification_floor_high`` what it exceeds in one case of forty.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import distinct_images
from fl_sim.metrics.vocabulary import METRICS, Metric

MOST_IMAGES = 10**8
HIGH = 0.975
FLOOR = "identification_floor"
FLOOR_HIGH = "identification_floor_high"


@dataclass(frozen=True)
class Guessing:
    """Several guesses at the same images, of which the luckiest counts.

    Each guess names for each recovered image one of its candidates, all as likely, independently
    of the other images and guesses. The number of images found is then a sum of binomial numbers,
    whose distribution is computed, not simulated. Whoever takes the best of several extractions,
    which resemble each other, is no luckier than that.

    Args:
        groups: images, 1 to :data:`MOST_IMAGES` together, and among how many candidates each of
            them is guessed, at least 1; of images with as many candidates.
        tries: guesses of which the best counts, at least 1.
    """

    groups: tuple[tuple[int, float], ...]
    tries: int = 1

    @property
    def images(self) -> int:
        """How many are guessed at."""
        return sum(images for images, _ in self.groups)

    @property
    def expected(self) -> float:
        """Mean share of images that the best guess finds, in [0, 1]."""
        low, shares = self._best
        return float((shares * (low + np.arange(len(shares)))).sum() / self.images)

    @property
    def high(self) -> float:
        """Share of images that the best guess stays at or below in 97.5 % of cases, in [0, 1]."""
        low, shares = self._best
        return (low + int(np.searchsorted(shares.cumsum(), HIGH - 1e-9))) / self.images

    @cached_property
    def _best(self) -> tuple[int, NDArray[np.float64]]:
        """How many images the best guess finds: the least of note, and probabilities from there."""
        low, shares = self._one
        below = np.concatenate([[0.0], np.minimum(1.0, shares.cumsum())])
        return low, np.diff(below**self.tries)

    @property
    def _one(self) -> tuple[int, NDArray[np.float64]]:
        """As :attr:`_best`, of a single guess."""
        least, total = 0, np.ones(1)
        for images, candidates in self.groups:
            low, one = _binomial(images, 1.0 / candidates)
            least, total = least + low, np.convolve(total, one)
        return least, total / total.sum()


def _binomial(n: int, chance: float) -> tuple[int, NDArray[np.float64]]:
    """Return the least number of hits of note in n tries, and probabilities from there.

    As ``scipy.stats.binom.pmf``, which takes a second to import: measuring does without. Ratios of
    neighbours are summed up in logarithms from the mode, over what is not less likely than 1e-15.
    """
    if chance >= 1.0:
        return n, np.ones(1)
    mean, wide = n * chance, 9.0 * math.sqrt(n * chance * (1.0 - chance)) + 40.0
    low, high = max(0, int(mean - wide)), min(n, int(mean + wide) + 1)
    hits = np.arange(low, high)
    steps = np.log((n - hits) / (hits + 1.0) * (chance / (1.0 - chance)))
    logs = np.concatenate([[0.0], steps.cumsum()])
    shares = np.exp(logs - logs.max())
    return low, shares / shares.sum()


def guessing(
    originals: torch.Tensor, labels: torch.Tensor | None = None, tries: int = 1
) -> Guessing:
    """Return what guessing at recovered images is.

    Args:
        originals: ``[n, channels, height, width]``; identical ones are one candidate.
        labels: what the guesser knows of each, ``[n]`` classes or ``[n, labels]`` zeros and ones:
            he guesses among originals of the same label, or label vector. ``None``: he knows
            nothing.
        tries: guesses of which the best counts.

    Raises:
        FlSimError: if there is not a label an image.
    """
    if labels is not None and len(labels) != len(originals):
        raise FlSimError(f"There are {len(labels)} labels for {len(originals)} originals.")
    own, _ = distinct_images(originals)
    kinds = np.zeros(len(own), dtype=np.int64)
    if labels is not None:
        rows = labels.cpu().numpy().reshape(len(own), -1)
        kinds = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    images: dict[float, int] = {}
    for kind in range(int(kinds.max()) + 1):
        members = own.cpu().numpy()[kinds == kind]
        candidates = float(len(np.unique(members)))
        images[candidates] = images.get(candidates, 0) + len(members)
    return Guessing(tuple((n, c) for c, n in images.items()), tries)


def blind_guessing(images: int, chance: float, tries: int = 1) -> Guessing:
    """Return what blind guesses are, from the numbers in a table alone.

    Args:
        images: how many, 1 to :data:`MOST_IMAGES`.
        chance: of naming one image's original, in (0, 1].
        tries: guesses of which the best counts.
    """
    return Guessing(((images, 1.0 / chance),), tries)


METRICS.register(
    FLOOR, "share of images that the best of as many guesses as extractions finds, knowing the key"
)(
    Metric(
        "Best of as many guesses",
        "leakage",
        range=(0.0, 1.0),
        heading="found,\nfloor",
        shown=("run", "summary"),
        word="best guess",
        mark="guessing",
        order=23,
    )
)
METRICS.register(FLOOR_HIGH, "share of images that such guesses exceed in 2.5 % of cases")(
    Metric(
        "Best of as many guesses, 97.5 %",
        "leakage",
        range=(0.0, 1.0),
        shown=(),
        word="luckiest guess",
        order=24,
    )
)
