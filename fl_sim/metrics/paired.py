"""Two treatments compared on the same test images, over seeds and images at once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_sim.data.base import MULTI_LABEL, Task
from fl_sim.errors import FlSimError, printable
from fl_sim.metrics.answers import Answers, read_answers
from fl_sim.metrics.uncertainty import Floats, Weighted, resampled, weighted_auc, weighted_dice
from fl_sim.randomness import numpy_generator
from fl_sim.statistics import Interval

RESAMPLES = 2000


def compare_answers(
    treated: Sequence[Path],
    baseline: Sequence[Path],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return how much better treated models do on the same test images: AUC, or Dice.

    The interval is that of a paired bootstrap (percentiles): each resample draws test images, the
    same for all models, and seeds, the same for both treatments, and takes the mean difference. So
    it covers both what other images and what other seeds would have changed; with one seed only
    the former. Deviations between k seeds are widened by ``sqrt(k / (k - 1))``, since draws from k
    seeds spread too little.

    Args:
        treated: files of answers (``answers/<stage>.npz`` in a run's folder), one a seed.
        baseline: those of the same seeds, in the same order.
        level: of confidence, in (0, 1).
        resamples: how many are drawn.
        seed: of drawing.

    Returns:
        Mean of ``treated - baseline`` and its interval; ``n`` is the number of seeds.

    Raises:
        FlSimError: if there are not as many files on both sides, one cannot be read, or they are
            not of the same test images.
    """
    if len(treated) != len(baseline) or not treated:
        raise FlSimError(
            f"Answers are compared in pairs, one a seed, but there are {len(treated)} and "
            f"{len(baseline)} files."
        )
    pairs = [
        (read_answers(one), read_answers(other))
        for one, other in zip(treated, baseline, strict=True)
    ]
    first = pairs[0][0]
    for paths, pair in zip(zip(treated, baseline, strict=True), pairs, strict=True):
        for path, own in zip(paths, pair, strict=True):
            if own.scores.shape != first.scores.shape or not np.array_equal(
                own.labels, first.labels
            ):
                raise FlSimError(
                    f"The answers in {printable(str(path))} are to other test images than those in "
                    f"{printable(str(treated[0]))}; compare runs on the same test set."
                )
    metrics = [(_metric(one), _metric(other)) for one, other in pairs]

    def differences(weights: Floats) -> Floats:
        return np.stack([one(weights) - other(weights) for one, other in metrics], axis=1)

    images, single = len(first.scores), first.labels.ndim == 1 and not first.is_dice
    strata = first.labels if single else np.zeros(images, dtype=np.int64)
    generator = numpy_generator(seed, "paired bootstrap")
    drawn = np.concatenate([differences(w) for w in resampled(strata, resamples, generator)])
    means = _over_seeds(drawn, generator)
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    shift = float(differences(np.ones((1, images))).mean())
    return Interval(shift, float(ends[0]), float(ends[1]), len(pairs))


def _over_seeds(drawn: Floats, generator: np.random.Generator) -> Floats:
    """Return the mean difference over seeds that are drawn for each resample ``[r, seeds]``."""
    seeds = drawn.shape[1]
    middle = drawn.mean(axis=1)
    if seeds == 1:
        return np.asarray(middle)
    picks = generator.integers(seeds, size=drawn.shape)
    apart = np.take_along_axis(drawn, picks, axis=1).mean(axis=1) - middle
    return np.asarray(middle + (seeds / (seeds - 1)) ** 0.5 * apart)


def _metric(given: Answers) -> Weighted:
    scores = given.scores.astype(np.float64)
    if given.is_dice:
        return weighted_dice(scores)
    several = given.labels.ndim == 2
    names = tuple(map(str, range(scores.shape[1])))
    task = Task(MULTI_LABEL if several else "multi-class", names)
    broken = ~np.isfinite(scores).all(axis=1)
    scores[broken] = 0.5 if several else 1.0 / len(names)
    return weighted_auc(scores, given.labels, task)
