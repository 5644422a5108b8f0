"""The distribution of weights, against what initialisation and training leave: a smooth one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fl_sim.auditing.numbers import FLOAT32, Format, format_of, numbers, words_of
from fl_sim.auditing.precision import Precision, precision_of
from fl_sim.auditing.subject import ALPHA, FEWEST, Subject, Unchecked
from fl_sim.checkpoints import Finding

Values = NDArray[np.floating[Any]]

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
_PRUNED = 0.01
SKEWNESS = 1.5
KURTOSIS = 60.0
FLATTEST = -1.35
"""Bounds of skewness and excess kurtosis. A uniform distribution, the flattest that any
initialisation gives, has -1.2, and two values have -2."""

ONE_SIDED = 0.25
"""Least ratio of squared skewness to excess kurtosis plus two, which it never exceeds, from which a
distribution is skewed as a whole and not by a few large weights: an exponential one has 0.5, a
perceptron's first layer that weight decay emptied 0.1."""


def check_values(subject: Subject) -> list[Finding]:
    """Look for values that many weights share, for lattices, and for shapes that nothing leaves.

    Every floating-point format is looked at, and complex numbers by their parts. Zeros and what is
    not finite are left out.

    Raises:
        Unchecked: if no tensor has weights enough.
    """
    findings: list[Finding] = []
    ran = False
    for name, tensor in subject.state.items():
        form = format_of(tensor)
        if form is None or tensor.dim() < 2 or tensor.numel() < FEWEST:
            continue
        words, values = words_of(tensor), numbers(tensor)
        kept = form.finite(words) & ~form.zeros(words)
        precision = precision_of(words, form.normals(words), form, tuple(tensor.shape))
        ran = ran or int(kept.sum()) >= FEWEST
        if precision.kind == "constant":  # of denormals there are few sizes
            findings += _two_values(name, values[form.normals(words)])
        if kept.sum() < FEWEST or precision.kind in ("constant", "integers", "grid"):
            continue
        if form.mantissa >= FLOAT32.mantissa and precision.bits < 8:
            findings += _shared(name, values[form.normals(words)])
        ulp = _spacing(values[kept], form, precision)
        if not precision.label.startswith("float8"):  # whose smallest numbers are a lattice
            findings += _lattice(name, values[kept], ulp)
        findings += _shape(name, values[kept], int(form.zeros(words).sum()))
    if not ran:
        raise Unchecked(f"no tensor has {FEWEST:,} finite weights other than zero")
    return findings


def _spacing(values: Values, form: Format, precision: Precision) -> Values:
    """Return how far apart the numbers of the narrowest format are that the values fit."""
    exponents = np.frexp(values.astype(np.float64))[1] - 1
    smallest = 2 - 2 ** (form.exponent - 1)
    bits = form.mantissa - precision.bits
    return np.asarray(np.ldexp(1.0, np.maximum(exponents, smallest) - bits))


def shared_values(values: Values) -> tuple[int, float]:
    """Return how many sizes are too frequent for float32 weights, and the share that have them.

    Sizes of ``n`` weights of a smooth density fall on at least ``2 ** 21`` floats a binade or
    lattice points of the generator; a size is too frequent if one as frequent is expected in less
    than one of a million tensors.
    """
    _, counts = np.unique(np.abs(values), return_counts=True)
    most = stats.poisson.isf(ALPHA / len(values), len(values) / 2**21) + 2
    often = counts > most
    return int(often.sum()), float(counts[often].sum() / len(values))


def lattice_peak(values: Values, spacing: Values | None = None) -> tuple[float, float]:
    """Return how far the strongest line of a lattice stands out, and its step.

    Weights on multiples of a step, with any offset, have a characteristic function that comes back
    at the frequency of one over the step. Its power is compared with that of nearby frequencies.

    Args:
        values: finite ones.
        spacing: of the format's numbers at each value. Rounding to them is undone at random, for
            it is a lattice of its own.

    Returns:
        The ratio, and the step in deviations of the values.
    """
    wide = values.astype(np.float64) / float(np.abs(values).max())
    if spacing is not None:
        drawn = np.random.default_rng(0).random(len(values)) - 0.5
        wide += drawn * (spacing / float(np.abs(values).max()))
    centred = (wide - wide.mean()) / wide.std()
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


def _two_values(name: str, values: Values) -> list[Finding]:
    """Tell weights of one size and two signs: a bit each, and no network of floats has them."""
    if len(values) < FEWEST or not (values > 0).any() or not (values < 0).any():
        return []
    what = "All its weights have one size and either sign: trained weights differ."
    return [Finding("values", "carries", what, name, {"weights": float(len(values))})]


def _shared(name: str, values: Values) -> list[Finding]:
    often, share = shared_values(values)
    if share < SHARED:
        return []
    what = f"{share:.1%} of its weights have one of {often} sizes, exactly: trained weights differ."
    return [Finding("values", "carries", what, name, {"sizes": often, "share": share})]


def _lattice(name: str, values: Values, spacing: Values) -> list[Finding]:
    ratio, step = lattice_peak(values, spacing)
    if ratio < LATTICE:
        return []
    what = f"Its weights prefer multiples of {step:.3g} deviations: they lie on a lattice."
    return [Finding("values", "carries", what, name, {"line": ratio, "step": step})]


def _shape(name: str, values: Values, zeros: int) -> list[Finding]:
    """Judge skewness and tails; flatness with the zeros, for pruning by size leaves a gap."""
    if len(values) < _SHAPE_FEWEST:
        return []
    scaled = values.astype(np.float64) / float(np.abs(values).max())
    skewness, kurtosis = float(stats.skew(scaled)), float(stats.kurtosis(scaled))
    evidence = {"skewness": skewness, "excess kurtosis": kurtosis}
    flatness = kurtosis
    if zeros >= _PRUNED * len(values):
        flatness = float(stats.kurtosis(np.concatenate([scaled, np.zeros(zeros)])))
    if flatness < FLATTEST:
        what = "Its weights are flatter than uniform ones, as two-valued or pixel-like values are."
    elif _skewed(skewness, kurtosis) or kurtosis > KURTOSIS:
        what = "Its weights are more skewed, or have longer tails, than training leaves."
    else:
        return []
    return [Finding("values", "suspicious", what, name, evidence)]


def _skewed(skewness: float, kurtosis: float) -> bool:
    return abs(skewness) > SKEWNESS and skewness**2 > ONE_SIDED * (kurtosis + 2)
