"""LiRA, the likelihood ratio attack (Carlini et al., S&P 2022).

Of each image the log-odds of its label are taken for normally distributed over models that were
trained with it, and over models without it. Online the score is the likelihood ratio of the two at
what the target answers (their algorithm 1); offline it is the probability that a model without the
image is less sure of it than the target is (their section V-C).

With fewer than 64 reference models one variance is taken for all images (their section VI-C):
each image's own is too rough then. It is that around each image's own mean, pooled over images.
"""

import numpy as np
from numpy.typing import NDArray

from fl_sim.membership_inference.base import METHODS, Method, Scores, mean_over
from fl_sim.membership_inference.references import References
from fl_sim.membership_inference.signals import Floats

OWN_VARIANCE = 64
"""Reference models from which on each image has variances of its own."""
_LEAST = 1e-12


@METHODS.register("lira", "likelihood ratio of models with and without it; many references (LiRA)")
class Lira(Method):
    """LiRA; see the module."""

    fewest = 4

    def score(self, target: Floats, known: References, fresh: NDArray[np.bool_]) -> Scores:
        """Score images; see :meth:`fl_sim.membership_inference.base.Method.score`."""
        from scipy import special

        mean_out, variance_out = moments(known.odds, ~known.included)
        away = (target - mean_out) / np.sqrt(variance_out)
        if self.mode == "offline":
            return Scores(away, np.asarray(special.ndtr(away), dtype=np.float64))
        mean_in, variance_in = moments(known.odds, known.included)
        ratio = _log_normal(target, mean_in, variance_in)
        ratio -= _log_normal(target, mean_out, variance_out)
        # The probability of being a member, where every second image is one.
        return Scores(ratio, np.asarray(special.expit(ratio), dtype=np.float64))


def moments(odds: Floats, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return each image's mean and variance over the models that are chosen for it.

    Args:
        odds: ``[models, n]``.
        chosen: ``[models, n]``, two models or more an image.

    Returns:
        Both ``[n]``; all variances are the same where there are fewer than :data:`OWN_VARIANCE`
        models.
    """
    mean = mean_over(odds, chosen)
    squares = np.where(chosen, (odds - mean) ** 2, 0.0).sum(axis=0)
    free = chosen.sum(axis=0) - 1
    if len(odds) < OWN_VARIANCE:
        variance = np.full(len(mean), squares.sum() / max(1, free.sum()))
    else:
        variance = squares / np.maximum(1, free)
    return mean, np.maximum(variance, _LEAST)


def _log_normal(value: Floats, mean: Floats, variance: Floats) -> Floats:
    """Return the logarithm of a normal density, but for a constant."""
    return np.asarray(-((value - mean) ** 2) / (2 * variance) - np.log(variance) / 2)
