"""Dead weights: training leaves them as initialisation drew them, so they are easy to judge."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fl_sim.auditing.subject import ALPHA, Subject
from fl_sim.checkpoints import Finding
from fl_sim.models import build, state_of

DISTANCE = 0.03
"""Kolmogorov-Smirnov distance that dead weights may have from a fresh network's, both brought to
unit deviation: weight decay scales them, and does not change their shape."""

GROWTH = 1.02
"""How much larger than a fresh network's their deviation may be: nothing honest enlarges them."""

SHRUNKEN = 0.1
"""Below this part of a fresh network's deviation, weight decay has left nothing to compare."""

PRUNED = 0.01
"""Share of zeros among dead weights from which they may have been pruned; pruning by size leaves
the largest of a fresh network's."""

_SAMPLE = 200_000
_SEEDS = 2


def check_dead(subject: Subject) -> list[Finding]:
    """Compare each tensor's dead weights with those that a fresh network has there.

    Weight decay moves them, too: SGD's scales them, and Adam's pulls all of them towards zero by
    the same distance. Bits in their low mantissa, or in lattices much finer than their deviation,
    are not seen.

    Raises:
        Unchecked: if the network or its images' size is not known.
    """
    masks = subject.traced_dead()
    if not masks or subject.spec is None:
        return []
    fresh = [state_of(build(subject.spec, seed)) for seed in range(_SEEDS)]
    findings, tests = [], len(masks)
    for name, mask in masks.items():
        if not subject.state[name].is_floating_point():
            continue  # codes of quantised weights have a scale of their own
        own = _sample(subject.state[name], mask)
        expected = np.concatenate([_sample(state[name], mask) for state in fresh])
        expected = expected[expected != 0]
        kept = own[own != 0]
        if len(kept) >= 256 and kept.std() > 0 and len(expected):
            found = _compared(name, kept, expected, tests)
            if found and len(kept) < (1 - PRUNED) * len(own):
                found = _compared(name, kept, _largest(expected, len(kept) / len(own)), tests)
            findings += found
    return findings


def _largest(values: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return the largest part of values: what pruning by size leaves."""
    sizes = np.abs(values)
    return values[sizes >= np.quantile(sizes, 1 - share)]


def _compared(
    name: str, own: NDArray[np.float64], expected: NDArray[np.float64], tests: int
) -> list[Finding]:
    result = stats.ks_2samp(own / own.std(), expected / expected.std())
    growth = float(own.std() / expected.std())
    noise = 1 + 5 / np.sqrt(2 * len(own))
    evidence = {"distance": float(result.statistic), "p": float(result.pvalue), "growth": growth}
    if result.statistic > DISTANCE and result.pvalue * tests < ALPHA:
        if growth < SHRUNKEN or _pulled(own, expected) < DISTANCE:
            what = "Its dead weights have shrunk, as Adam's weight decay makes them."
            return [Finding("dead weights", "note", what, name, evidence)]
        what = "Its dead weights, which nothing trains, are not distributed as initialisation does."
    elif growth > GROWTH * noise:
        what = "Its dead weights, which nothing trains, are larger than initialisation makes them."
    else:
        return []
    return [Finding("dead weights", "carries", what, name, evidence)]


def _pulled(own: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return how far sizes are from fresh ones less a common distance; the larger half counts.

    The smaller ones have reached zero and swing around it.
    """
    sizes, fresh = np.abs(own), np.abs(expected)
    pulled = fresh - (np.quantile(fresh, 0.9) - np.quantile(sizes, 0.9))
    middle = np.median(sizes)
    larger, others = sizes[sizes > middle], pulled[pulled > middle]
    if len(larger) == 0 or len(others) == 0:
        return 1.0
    return float(stats.ks_2samp(larger, others).statistic)


def _sample(tensor: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor[mask].double().numpy()
    values = values[np.isfinite(values)]
    return values[:: max(1, len(values) // _SAMPLE)]
