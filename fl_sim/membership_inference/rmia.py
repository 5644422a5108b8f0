"""RMIA, the robust membership inference attack (Zarifzadeh, Liu and Shokri, ICML 2024).

An image ``x`` is a member if the model likes it more than other models do, by a factor that few
fresh images ``z`` reach. With ``ratio(x) = p(x | target) / p(x)``, where ``p(x)`` is what models
give it on average, its score is the share of the fresh images with ``ratio(x) / ratio(z) >= gamma``
(their equations 2 to 4).

- Online, ``p(x)`` is the mean of reference models with and without ``x``, in equal parts.
- Offline, models with ``x`` are not there, and what they would give is taken for
  ``a * p_without(x) + (1 - a)``, so that ``p(x) = ((1 + a) * p_without(x) + (1 - a)) / 2`` (their
  appendix on offline attacks). ``a`` is what works best against each reference model, attacked by
  means of the others: it never depends on the target. With two reference models, of which none is
  left for that, it is 0.3.

The score never falls where ``ratio`` rises, so images are ordered by the ratio: that is the score
with as many fresh images as one likes, without its ties.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_sim.membership_inference.base import METHODS, Method, Mode, Scores, mean_over
from fl_sim.membership_inference.references import References
from fl_sim.membership_inference.roc import auc_of
from fl_sim.membership_inference.signals import Floats, log_probability

GAMMA = 2.0
"""How much more an image must be liked than a fresh one."""
UNCHOSEN = 0.3
"""The share ``a`` where there are too few reference models to choose it."""
CHOICES = tuple(step / 10 for step in range(11))
_LEAST = 1e-300


@METHODS.register("rmia", "the target likes it more than other models do; few references (RMIA)")
class Rmia(Method):
    """RMIA; see the module.

    Args:
        mode: which reference models it takes.
        a: the offline share, in [0, 1]; chosen by means of the reference models where not given.
        gamma: how much more an image must be liked than a fresh one, at least 1.
    """

    def __init__(self, mode: Mode = "online", a: float | None = None, gamma: float = GAMMA) -> None:
        super().__init__(mode)
        self.a = a
        self.gamma = gamma

    def score(self, target: Floats, known: References, fresh: NDArray[np.bool_]) -> Scores:
        """Score images; see :meth:`fl_sim.membership_inference.base.Method.score`."""
        if self.mode == "online":
            average = online_average(known)
        else:
            a = chosen_a(known) if self.a is None else self.a
            average = offline_average(known, a)
        ratios = log_ratios(target, average)
        return Scores(ratios, dominated_share(ratios, fresh, self.gamma))


def online_average(known: References) -> Floats:
    """Return ``p(x)`` from models with and without each image, in equal parts, ``[n]``."""
    likely = np.exp(log_probability(known.odds))
    seen, unseen = (mean_over(likely, which) for which in (known.included, ~known.included))
    return np.asarray((seen + unseen) / 2, dtype=np.float64)


def offline_average(known: References, a: float) -> Floats:
    """Return ``p(x)`` from models without each image alone, ``[n]``.

    Args:
        known: what reference models answer.
        a: how far models with an image are taken to be like those without it, in [0, 1].
    """
    unseen = mean_over(np.exp(log_probability(known.odds)), ~known.included)
    return np.asarray(((1 + a) * unseen + (1 - a)) / 2, dtype=np.float64)


def log_ratios(target: Floats, average: Floats) -> Floats:
    """Return ``log(p(x | target) / p(x))`` of each image, ``[n]``."""
    return log_probability(target) - np.log(np.maximum(average, _LEAST))


def dominated_share(ratios: Floats, fresh: NDArray[np.bool_], gamma: float) -> Floats:
    """Return the share of fresh images that each image beats by a factor, ``[n]``.

    A fresh image is not compared with itself.

    Args:
        ratios: ``[n]``, logarithms.
        fresh: ``[n]``, which images are fresh.
        gamma: the factor, at least 1.
    """
    others = np.sort(ratios[fresh])
    beaten = np.searchsorted(others, ratios - math.log(gamma), side="right").astype(np.float64)
    own = fresh & (gamma <= 1)  # by a factor of 1 an image reaches itself
    count = len(others) - fresh
    return np.asarray((beaten - own) / np.maximum(count, 1), dtype=np.float64)


@dataclass(frozen=True)
class _Trial:
    """A reference model taken for the target, and the others that are left."""

    target: Floats
    known: References
    members: NDArray[np.bool_]


def chosen_a(known: References) -> float:
    """Return the offline share that finds the members of reference models best.

    Each is attacked by means of the others, without the one of its own pair, so that of every image
    half of those that are left are models without it.
    """
    if len(known.odds) < 4:
        return UNCHOSEN
    trials = [_trial(known, number) for number in range(len(known.odds))]

    def worth(a: float) -> float:
        found = []
        for trial in trials:
            ratios = log_ratios(trial.target, offline_average(trial.known, a))
            found.append(auc_of(ratios[trial.members], ratios[~trial.members]))
        return float(np.mean(found))

    return max(CHOICES, key=worth)


def _trial(known: References, number: int) -> _Trial:
    others = [other for other in range(len(known.odds)) if other // 2 != number // 2]
    left = References(known.odds[others], known.included[others])
    return _Trial(known.odds[number], left, known.included[number])
