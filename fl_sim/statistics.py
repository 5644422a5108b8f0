"""Statistics over seeds: intervals, paired comparisons, corrections for many tests, Pareto fronts.

Runs of the same seed share data, initial weights and, where only a defence differs, the attacked
model itself; so defences are compared in pairs, and a comparison of runs that do not pair is
refused. What cannot be said is ``nan``: one seed has a mean and no interval.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.randomness import numpy_generator

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["t", "bootstrap"]
Floats = NDArray[np.float64]
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Args:
        mean: of the values that are there; ``nan`` without any.
        low, high: ends of the interval; ``nan`` where the values do not give one.
        n: values that are there.
        missing: values that are not a number, which the mean leaves out.
    """

    mean: float
    low: float
    high: float
    n: int
    missing: int = 0


@dataclass(frozen=True)
class PairedComparison:
    """What changes between two treatments of the same units.

    Args:
        shift: mean of the differences, ``treated - baseline``.
        low, high: its t-based confidence interval.
        n: pairs in which both values are there.
        missing: pairs in which one is not.
        p_t: two-sided p-value of the paired t-test.
        p_wilcoxon: two-sided p-value of Wilcoxon's signed-rank test. With n pairs it is never
            below ``2 ** (1 - n)``: five seeds cannot reach 0.05.
    """

    shift: float
    low: float
    high: float
    n: int
    missing: int
    p_t: float
    p_wilcoxon: float


def mean_interval(
    values: ArrayLike, level: float = 0.95, method: Method = "t", seed: int = 0
) -> Interval:
    """Return the mean over seeds and its confidence interval.

    Args:
        values: one a seed; those that are not a number are left out and counted.
        level: of confidence, in (0, 1).
        method: ``"t"``, Student's interval, which takes the values for normal, or
            ``"bootstrap"``, bias-corrected and accelerated (BCa; Efron, JASA 1987), which needs
            some ten values to be worth its name.
        seed: of the bootstrap's resampling.

    Returns:
        Without an interval where there are fewer than two values, where one is infinite (the PSNR
        of a perfect copy), and for a bootstrap of values that are all equal.

    Raises:
        FlSimError: if the level or the method is impossible.
    """
    _check_level(level)
    if method not in ("t", "bootstrap"):
        raise FlSimError(
            f"There is no interval called '{method}'.{did_you_mean(method, ('t', 'bootstrap'))}"
        )
    given = np.asarray(values, dtype=np.float64).ravel()
    there = given[~np.isnan(given)]
    missing = len(given) - len(there)
    mean = _mean(there)
    low = high = math.nan
    if len(there) > 1 and np.isfinite(there).all():
        low, high = (_student if method == "t" else _bootstrap)(there, level, seed)
    return Interval(mean, low, high, len(there), missing)


def compare_paired(
    treated: ArrayLike, baseline: ArrayLike, level: float = 0.95
) -> PairedComparison:
    """Compare two treatments of the same units, for example two defences of the same models.

    Args:
        treated: ``[n]``, one value a unit.
        baseline: ``[n]``, of the same units in the same order.
        level: of confidence, in (0, 1).

    Returns:
        The shift and its tests; p-values are ``nan`` where the pairs do not give one (fewer than
        two, or an infinite difference). Where no pair differs, Wilcoxon's test is 1 and the t-test
        ``nan``.

    Raises:
        FlSimError: if the two differ in length.
    """
    from scipy import stats

    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (treated, baseline))
    if len(first) != len(second):
        raise FlSimError(
            f"Pairs need as many treated values as baseline values, not {len(first)} and "
            f"{len(second)}."
        )
    with np.errstate(invalid="ignore"):
        differences = first - second
        # Two infinite values that are equal do not differ.
        differences[(first == second) & np.isinf(first)] = 0.0
    interval = mean_interval(differences, level)
    there = differences[~np.isnan(differences)]
    p_t = p_wilcoxon = math.nan
    if len(there) > 1 and np.isfinite(there).all():
        if np.ptp(there) > 0:
            p_t = float(stats.ttest_1samp(there, 0.0).pvalue)
        p_wilcoxon = float(stats.wilcoxon(there).pvalue) if np.any(there) else 1.0
    return PairedComparison(
        interval.mean, interval.low, interval.high, interval.n, interval.missing, p_t, p_wilcoxon
    )


def holm(p_values: ArrayLike) -> Floats:
    """Adjust p-values so that all tests together err with probability at most alpha.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6 (1979).

    Args:
        p_values: ``[n]`` in [0, 1]; a test that gave ``nan`` stays so and does not count.

    Returns:
        ``[n]`` in [0, 1]; reject where it is at most alpha.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    there = np.flatnonzero(~np.isnan(given))
    order = there[np.argsort(given[there], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return adjusted


def false_discovery_rate(p_values: ArrayLike) -> Floats:
    """Adjust p-values so that at most a share alpha of the rejections is false, on average.

    Benjamini and Hochberg, JRSS B 57 (1995), as scipy does it.

    Args:
        p_values: ``[n]`` in [0, 1]; a test that gave ``nan`` stays so and does not count.
    """
    from scipy import stats

    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    there = ~np.isnan(given)
    if there.any():
        adjusted[there] = stats.false_discovery_control(given[there])
    return adjusted


def compare_treatments(
    frame: "pd.DataFrame",
    treatment: str,
    units: Sequence[str],
    value: str,
    baseline: str,
    level: float = 0.95,
) -> "pd.DataFrame":
    """Compare every treatment with a baseline on the same units, corrected for many tests.

    Args:
        frame: a row a unit and treatment.
        treatment: column of what is compared, for example defences.
        units: columns that tell one unit from another: the seed and whatever else tells the
            attacked models apart.
        value: column of the metric.
        baseline: the treatment that the others are compared with.
        level: of confidence of each interval by itself, in (0, 1).

    Returns:
        A row a treatment but the baseline, with the fields of :class:`PairedComparison` and
        ``p_t_holm``, ``p_t_fdr``, ``p_wilcoxon_holm`` and ``p_wilcoxon_fdr``, adjusted over the
        rows.

    Raises:
        FlSimError: if a column or the baseline is unknown, a unit has two values of one
            treatment, or the treatments do not have the same units.
    """
    import pandas as pd

    for column in (treatment, *units, value):
        if column not in frame.columns:
            raise FlSimError(
                f"There is no column '{column}' to compare."
                f"{did_you_mean(column, [str(c) for c in frame.columns])}"
            )
    paired = _paired(frame, treatment, units, value)
    if baseline not in paired.columns:
        raise FlSimError(
            f"There is no '{baseline}' in the column '{treatment}'."
            f"{did_you_mean(str(baseline), [str(c) for c in paired.columns])}"
        )
    others = [name for name in paired.columns if name != baseline]
    rows = []
    for name in others:
        compared = compare_paired(paired[name], paired[baseline], level)
        rows.append({treatment: name, "baseline": baseline, **vars(compared)})
    result = pd.DataFrame(rows)
    for test in ("p_t", "p_wilcoxon") if rows else ():
        result[f"{test}_holm"] = holm(result[test])
        result[f"{test}_fdr"] = false_discovery_rate(result[test])
    return result


def pareto_front(leakage: ArrayLike, utility: ArrayLike) -> NDArray[np.bool_]:
    """Tell which defences no other one beats: none leaks less at no less utility, or the reverse.

    Args:
        leakage: ``[n]``, lower is better for the owner.
        utility: ``[n]``, higher is better.

    Returns:
        ``[n]``, whether each is on the front. Equal points are on it together; one that lacks a
        number never is.

    Raises:
        FlSimError: if the two differ in length.
    """
    leaks, worth = (np.asarray(v, dtype=np.float64).ravel() for v in (leakage, utility))
    if len(leaks) != len(worth):
        raise FlSimError(
            f"A Pareto front needs as many leakages as utilities, not {len(leaks)} and "
            f"{len(worth)}."
        )
    there = ~(np.isnan(leaks) | np.isnan(worth))
    no_worse = (leaks[:, None] <= leaks) & (worth[:, None] >= worth)
    better = (leaks[:, None] < leaks) | (worth[:, None] > worth)
    beaten = (no_worse & better & there[:, None]).any(axis=0)
    front: NDArray[np.bool_] = there & ~beaten
    return front


def _paired(
    frame: "pd.DataFrame", treatment: str, units: Sequence[str], value: str
) -> "pd.DataFrame":
    """Return a row a unit and a column a treatment; refuse what does not pair."""
    twice = frame.duplicated([*units, treatment])
    if twice.any():
        unit = _said(frame[twice].iloc[0], [*units, treatment])
        raise FlSimError(
            f"There are several values for {unit}; name every column that tells units apart."
        )
    order = frame[treatment].drop_duplicates().tolist()
    present = {
        name: set(rows[list(units)].itertuples(index=False, name=None))
        for name, rows in frame.groupby(treatment, sort=False)
    }
    everywhere = set().union(*present.values())
    for name, own in present.items():
        if own != everywhere:
            lacking = sorted(everywhere - own, key=str)[0]
            said = ", ".join(f"{u} {v}" for u, v in zip(units, lacking, strict=True))
            raise FlSimError(
                f"The {treatment} '{name!s}' has no value for {said}, so it does not pair with the "
                f"others; run what is missing, or leave that out of the comparison."
            )
    wide = frame.set_index([*units, treatment])[value].unstack(treatment)
    return wide[order]


def _said(row: "pd.Series[Any]", columns: Sequence[str]) -> str:
    return ", ".join(f"{column} {row[column]}" for column in columns)


def _mean(values: Floats) -> float:
    if not len(values):
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(values.mean())


def _student(values: Floats, level: float, seed: int) -> tuple[float, float]:
    from scipy import stats

    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    mean = float(values.mean())
    return mean - half, mean + half


def _bootstrap(values: Floats, level: float, seed: int) -> tuple[float, float]:
    from scipy import stats

    if np.ptp(values) == 0:
        return math.nan, math.nan
    with warnings.catch_warnings():
        # Of a distribution without spread scipy warns and gives nan, which is what is meant here.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        ends = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            n_resamples=RESAMPLES,
            method="BCa",
            random_state=numpy_generator(seed, "bootstrap"),
        ).confidence_interval
    return float(ends.low), float(ends.high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise FlSimError(f"A confidence level lies between 0 and 1, not at {level}.")
