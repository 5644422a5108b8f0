"""How far a utility metric depends on which images are in the test set.

A test set is a sample, too, and small classes make it a small one. ``<metric>_error`` is the
standard error of a metric over test images: the deviation of the metric over resamples of the test
set (bootstrap; Efron 1979), in which each class keeps its number of images.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.data.base import Task
from fl_sim.metrics.utility import dice_by_volume, settled_scores
from fl_sim.metrics.vocabulary import METRICS, Metric
from fl_sim.randomness import numpy_generator

RESAMPLES = 500
_AT_ONCE = 1 << 21
"""Weights that are held at once."""

Floats = NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""``metric(weights [resamples, n]) -> [resamples]``."""


def utility_errors(
    scores: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    patients: NDArray[np.str_] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, float]:
    """Return standard errors of utility metrics over test images, from 0.

    The resamples are the same for every model that is tested on the same labels.

    Args:
        scores, labels, task, patients: as of :func:`fl_sim.metrics.utility.utility`.
        resamples: test sets drawn; images with replacement, of each class as many as there are,
            in multi-label tasks of all; of a segmentation volumes, as far as patients are known.

    Returns:
        ``auc_error`` and ``accuracy_error``, or for a segmentation ``dice_error``; and
        ``test_images``, how many images or volumes were drawn each time.
    """
    if task.is_segmentation:
        dice = dice_by_volume(scores, labels, task, patients)
        metrics: dict[str, Weighted] = {"dice": weighted_dice(dice)}
        strata = np.zeros(len(dice), dtype=np.int64)
    else:
        values, truth, answers = settled_scores(scores, labels, task)
        right = answers.reshape(len(answers), -1).mean(axis=1)
        strata = np.zeros(len(truth), dtype=np.int64) if task.multi_label else truth
        metrics = {
            "auc": weighted_auc(values, truth, task),
            "accuracy": lambda weights: weights @ right / weights.sum(axis=1),
        }
    found: dict[str, list[Floats]] = {name: [] for name in metrics}
    for weights in resampled(strata, resamples):
        for name, metric in metrics.items():
            found[name].append(metric(weights))
    errors = {f"{n}_error": float(np.std(np.concatenate(v), ddof=1)) for n, v in found.items()}
    return {**errors, "test_images": float(len(strata))}


def resampled(
    strata: NDArray[np.int64], resamples: int, generator: np.random.Generator | None = None
) -> Iterator[Floats]:
    """Yield how often each image is in resamples of a test set, ``[some resamples, n]``.

    Args:
        strata: of each image, ``[n]``; each keeps its number of images.
        resamples: how many, over all that is yielded.
        generator: of randomness; by default always the same.
    """
    random = numpy_generator(0, "test images") if generator is None else generator
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    step = max(1, _AT_ONCE // len(strata))
    for first in range(0, resamples, step):
        weights = np.empty((min(step, resamples - first), len(strata)))
        for own in members:
            shares = np.full(len(own), 1.0 / len(own))
            weights[:, own] = random.multinomial(len(own), shares, size=len(weights))
        yield weights


def weighted_auc(values: Floats, truth: NDArray[np.int64], task: Task) -> Weighted:
    """Return the AUC of :func:`fl_sim.metrics.utility.utility` as a function of images' weights.

    Ties count one half. In a resample without images of both kinds a label is left out of the mean.

    Args:
        values: ``[n, outputs]``, finite.
        truth: ``[n]``, or ``[n, outputs]`` of zeros and ones.
        task: what they mean.
    """
    outputs = [1] if not task.multi_label and task.outputs == 2 else range(task.outputs)
    kinds = [truth[:, k] == 1 if task.multi_label else truth == k for k in outputs]
    ranked = [
        _ranked(values[:, k], positive)
        for k, positive in zip(outputs, kinds, strict=True)
        if 0 < positive.sum() < len(positive)
    ]

    def auc(weights: Floats) -> Floats:
        if not ranked:
            return np.full(len(weights), 0.5)
        each = np.stack([one(weights) for one in ranked])
        there = ~np.isnan(each)
        total = np.where(there, each, 0.0).sum(axis=0)
        return np.where(there.any(axis=0), total / np.maximum(1, there.sum(axis=0)), 0.5)

    return auc


def _ranked(values: Floats, positive: NDArray[np.bool_]) -> Weighted:
    """Return the AUC of one output; images are sorted once, for all weights."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)
    hits, misses = positive[order], ~positive[order]

    def auc(weights: Floats) -> Floats:
        ordered = weights[:, order]
        above = np.add.reduceat(ordered * hits, starts, axis=1)
        below = np.add.reduceat(ordered * misses, starts, axis=1)
        beaten = (above * (below.cumsum(axis=1) - 0.5 * below)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, beaten / pairs, np.nan)

    return auc


def weighted_dice(dice: Floats) -> Weighted:
    """Return the mean Dice over classes as a function of volumes' weights.

    Args:
        dice: of each volume and foreground class, ``[volumes, classes]``; ``nan`` where a volume
            has none of a class.
    """
    there = ~np.isnan(dice)
    filled = np.where(there, dice, 0.0)

    def mean(weights: Floats) -> Floats:
        counted = weights @ there
        of_classes = np.where(counted > 0, weights @ filled / np.maximum(counted, 1e-12), 1.0)
        return np.asarray(of_classes.mean(axis=1), dtype=np.float64)

    return mean


METRICS.register(
    "test_images", "images, or volumes of a segmentation, that utility is measured on"
)(Metric("Test images", "other", format="count", range=(0.0, math.inf), shown=(), order=20))
