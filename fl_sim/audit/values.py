"""The distribution of weights, against what initialisation and training leave: a smooth one."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fl_sim.audit.bits import rounded_to
from fl_sim.audit.subject import ALPHA, FEWEST, Subject
from fl_sim.checkpoints import Finding

LATTICE = 40.0
"""How far a frequency of the weights' characteristic function may stand out of its neighbours. For
a smooth density it is F-distributed with 2 and 84 degrees of freedom, so 40 has a chance of 1e-7
among the 130,000 frequencies of a tensor. Clean networks of this project reached 16."""

SHARED = 1e-3
"""Share of weights with too frequent sizes that is told: weight decay lets a few dead weights meet
close to zero (1.4e-4 were seen), written values are 2e-3 and more."""

_BINS = 1 << 18
_REACH = 6.0
_NEIGHBOURS = 24
_GAP = 3
_SHAPE_FEWEST = 2048
SKEWNESS = 1.5
KURTOSIS = 60.0
FLATTEST = -1.35
"""Bounds of skewness and excess kurtosis. A uniform distribution, the flattest that any
initialisation gives, has -1.2, and two values have -2."""


def check_values(subject: Subject) -> list[Finding]:
    """Look for values that many weights share, for lattices, and for shapes that nothing leaves."""
    findings: list[Finding] = []
    for name, values in subject.weights():
        kept = values[(values != 0) & np.isfinite(values)]
        if len(kept) < len(values) and not np.isfinite(values).all():
            findings.append(Finding("values", "suspicious", "It has values not finite.", name))
        if len(kept) < FEWEST:
            continue
        if subject.state[name].dtype == torch.float32 and rounded_to(kept.view(np.uint32)) is None:
            findings += _shared(name, kept)
        findings += _lattice(name, kept) + _shape(name, kept)
    return findings


def shared_values(values: NDArray[np.float32]) -> tuple[int, float]:
    """Return how many sizes are too frequent for float32 weights, and the share that have them.

    Sizes of ``n`` weights of a smooth density fall on at least ``2 ** 21`` floats a binade or
    lattice points of the generator; a size is too frequent if one as frequent is expected in less
    than one of a million tensors.
    """
    _, counts = np.unique(np.abs(values), return_counts=True)
    most = stats.poisson.isf(ALPHA / len(values), len(values) / 2**21) + 2
    often = counts > most
    return int(often.sum()), float(counts[often].sum() / len(values))


def lattice_peak(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return how far the strongest line of a lattice stands out, and its step.

    Weights on multiples of a step, with any offset, have a characteristic function that comes back
    at the frequency of one over the step. Its power is compared with that of nearby frequencies.

    Returns:
        The ratio, and the step in deviations of the values.
    """
    centred = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    counts, _ = np.histogram(centred, _BINS, (-_REACH, _REACH))
    power = np.abs(np.fft.rfft(counts)) ** 2
    around = np.zeros(2 * _NEIGHBOURS + 1)
    around[:] = 1
    around[_NEIGHBOURS - _GAP : _NEIGHBOURS + _GAP + 1] = 0
    local = np.convolve(power, around / around.sum(), "same")
    first = int(2 * 2 * _REACH)  # below, the density's own shape
    ratio = power[first:] / np.maximum(local[first:], len(values))
    best = int(ratio.argmax())
    return float(ratio[best]), 2 * _REACH / (first + best)


def _shared(name: str, values: NDArray[np.float32]) -> list[Finding]:
    often, share = shared_values(values)
    if share < SHARED:
        return []
    what = f"{share:.1%} of its weights have one of {often} sizes, exactly: trained weights differ."
    return [Finding("values", "carries", what, name, {"sizes": often, "share": share})]


def _lattice(name: str, values: NDArray[np.float32]) -> list[Finding]:
    ratio, step = lattice_peak(values)
    if ratio < LATTICE:
        return []
    what = f"Its weights prefer multiples of {step:.3g} deviations: they lie on a lattice."
    return [Finding("values", "carries", what, name, {"line": ratio, "step": step})]


def _shape(name: str, values: NDArray[np.float32]) -> list[Finding]:
    if len(values) < _SHAPE_FEWEST:
        return []
    skewness, kurtosis = float(stats.skew(values)), float(stats.kurtosis(values))
    evidence = {"skewness": skewness, "excess kurtosis": kurtosis}
    if kurtosis < FLATTEST:
        what = "Its weights are flatter than uniform ones, as two-valued or pixel-like values are."
    elif abs(skewness) > SKEWNESS or kurtosis > KURTOSIS:
        what = "Its weights are more skewed, or have longer tails, than training leaves."
    else:
        return []
    return [Finding("values", "suspicious", what, name, evidence)]
