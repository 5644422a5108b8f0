"""Dead weights: training leaves them as initialisation drew them, so they are easy to judge."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fl_sim.audit.subject import ALPHA, Finding, Subject
from fl_sim.models import build, state_of

DISTANCE = 0.03
"""Kolmogorov-Smirnov distance that dead weights may have from a fresh network's, both brought to
unit deviation: weight decay scales them, and does not change their shape."""

GROWTH = 1.02
"""How much larger than a fresh network's their deviation may be: nothing honest enlarges them."""

_SAMPLE = 200_000
_SEEDS = 2


def check_dead(subject: Subject) -> list[Finding]:
    """Compare each tensor's dead weights with those that a fresh network has there.

    Bits in their low mantissa, or in lattices much finer than their deviation, are not seen.
    """
    if not subject.dead or subject.spec is None:
        return []
    fresh = [state_of(build(subject.spec, seed)) for seed in range(_SEEDS)]
    findings = []
    for name, mask in subject.dead.items():
        own = _sample(subject.state[name], mask)
        expected = np.concatenate([_sample(state[name], mask) for state in fresh])
        if len(own) >= 256 and own.std() > 0:
            findings += _compared(name, own, expected, len(subject.dead))
    return findings


def _compared(
    name: str, own: NDArray[np.float64], expected: NDArray[np.float64], tests: int
) -> list[Finding]:
    result = stats.ks_2samp(own / own.std(), expected / expected.std())
    growth = float(own.std() / expected.std())
    noise = 1 + 5 / np.sqrt(2 * len(own))
    evidence = {"distance": float(result.statistic), "p": float(result.pvalue), "growth": growth}
    if result.statistic > DISTANCE and result.pvalue * tests < ALPHA:
        what = "Its dead weights, which nothing trains, are not distributed as initialisation does."
    elif growth > GROWTH * noise:
        what = "Its dead weights, which nothing trains, are larger than initialisation makes them."
    else:
        return []
    return [Finding("dead weights", "carries", what, name, evidence)]


def _sample(tensor: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float64]:
    values = tensor.float()[mask].double().numpy()
    return values[:: max(1, len(values) // _SAMPLE)]
