"""Statistics over seeds: intervals, paired comparisons, corrections for many tests, Pareto fronts.

Runs of the same seed share data, initial weights and, where only a defence differs, the attacked
model itself; so defences are compared in pairs, and a comparison of runs that do not pair is
refused. What cannot be said is ``nan``: one seed has a mean and no interval.
"""

import dataclasses
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
MARGIN = 0.005
"""Differences within it are taken for none, where that can be shown; meant for AUC."""
ENDLESS = (-math.inf, math.inf)
TESTS = ("p_t", "p_wilcoxon", "p_permutation")
Verdict = Literal["better", "worse", "equivalent", "not told apart"]
_EXACT = 14
"""Pairs up to which all assignments of signs are counted out."""


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

    @property
    def symmetric(self) -> bool:
        """Whether its ends are as far from the mean, as those of Student's interval are."""
        below, above = self.mean - self.low, self.high - self.mean
        return math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-12)


@dataclass(frozen=True)
class PairedComparison:
    """What changes between two treatments of the same units.

    Args:
        shift: mean of the differences, ``treated - baseline``.
        low, high: its t-based confidence interval.
        low_90, high_90: its t-based 90 % confidence interval. Where it lies inside a margin, two
            one-sided tests at 5 % (TOST; Schuirmann 1987) both say that the shift does.
        n: pairs in which both values are there.
        missing: pairs in which one is not.
        p_t: two-sided p-value of the paired t-test.
        p_wilcoxon: two-sided p-value of Wilcoxon's signed-rank test. With n pairs it is never
            below ``2 ** (1 - n)``: five seeds cannot reach 0.05.
        p_permutation: two-sided p-value of the permutation test of the mean that turns the signs of
            differences round (Fisher 1935): exact for up to 14 pairs, else of 9,999 resamples. It
            takes nothing for normal, and is never below ``2 ** (1 - n)`` either.
    """

    shift: float
    low: float
    high: float
    low_90: float
    high_90: float
    n: int
    missing: int
    p_t: float
    p_wilcoxon: float
    p_permutation: float


def mean_interval(
    values: ArrayLike,
    level: float = 0.95,
    method: Method = "t",
    seed: int = 0,
    limits: tuple[float, float] = ENDLESS,
    trials: float | None = None,
    error: float = 0.0,
) -> Interval:
    """Return the mean over seeds and its confidence interval, which stays within its limits.

    With ``"t"`` and without limits it is Student's. Where both limits are finite, Student's
    interval of the logit of the mean is carried back, and where only the lower one is, that of its
    logarithm (delta method; see :func:`within`). Shares of images have Wilson's score interval
    (JASA 1927), with as many trials as the spread between seeds is worth, ``p (1 - p) / se^2``, if
    these are fewer than there were, and with Student's quantile: it has a width where all seeds are
    at an end.

    Args:
        values: one a seed; those that are not a number are left out and counted.
        level: of confidence, in (0, 1).
        method: ``"t"``, as above, which takes the values for normal, or ``"bootstrap"``,
            bias-corrected and accelerated (BCa; Efron, JASA 1987), which needs some ten values to
            be worth its name, and never leaves what was measured.
        seed: of the bootstrap's resampling.
        limits: lowest and highest value that there can be.
        trials: of shares of images, or counts of them: how many images each seed has.
        error: standard error of each value that all seeds share, as of test images: it is added
            (squared) to the variance of the mean and does not shrink with more seeds.

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
        if method == "bootstrap":
            low, high = _bootstrap(there, level, seed)
        else:
            low, high = _spread(there, level, limits, trials, error)
    return Interval(mean, low, high, len(there), missing)


def within(mean: float, half: float, limits: tuple[float, float]) -> tuple[float, float]:
    """Carry the ends of an interval, half its width from the mean, over to where values can be.

    With two finite limits by the logit, with a lower one alone by the logarithm (delta method):
    a narrow interval stays what it was, a wide one does not leave the limits. The logarithm says
    nothing of values that are as far from the limit as from each other; where its interval reaches
    more than twice as far above the mean as half the width, that is taken, and cut at the limit.

    Args:
        mean: within the limits.
        half: half the width on the scale of the mean, at least 0.
        limits: lowest and highest value that there can be.
    """
    low, high = limits
    above = mean - low
    if half == 0 or not math.isfinite(low) or above <= 0:
        return mean - half, mean + half
    if not math.isfinite(high):
        factor = math.exp(min(half / above, 700.0))
        if above * (factor - 1) > 2 * half:
            return low, mean + half
        return low + above / factor, low + above * factor
    below = high - mean
    if below <= 0:
        return mean - half, mean + half
    odds, factor = above / below, math.exp(min(half * (1 / above + 1 / below), 300.0))
    ends = (odds / factor, odds * factor)
    return (low + (high - low) * ends[0] / (1 + ends[0]), high - (high - low) / (1 + ends[1]))


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
    interval, narrow = mean_interval(differences, level), mean_interval(differences, 0.9)
    there = differences[~np.isnan(differences)]
    p_t = p_wilcoxon = p_permutation = math.nan
    if len(there) > 1 and np.isfinite(there).all():
        if np.ptp(there) > 0:
            p_t = float(stats.ttest_1samp(there, 0.0).pvalue)
        p_wilcoxon = float(stats.wilcoxon(there).pvalue) if np.any(there) else 1.0
        p_permutation = _sign_flips(there)
    return PairedComparison(
        shift=interval.mean,
        low=interval.low,
        high=interval.high,
        low_90=narrow.low,
        high_90=narrow.high,
        n=interval.n,
        missing=interval.missing,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        p_permutation=p_permutation,
    )


def verdict(
    compared: PairedComparison,
    p: float,
    margin: float = MARGIN,
    alpha: float = 0.05,
    lower_is_better: bool = False,
) -> Verdict:
    """Tell in a word what a comparison says.

    Args:
        compared: of two treatments.
        p: its p-value, corrected for how many were compared; ``nan`` tells nothing.
        margin: differences within it are taken for none.
        alpha: what p must be below.
        lower_is_better: whether lower values are better, or leak less.

    Returns:
        ``"better"`` or ``"worse"`` than the baseline; ``"equivalent"``, where the 90 % interval
        lies inside the margin (two one-sided tests at 5 %); or ``"not told apart"``, which makes
        nothing equal.
    """
    if p < alpha and compared.shift != 0:
        return "better" if (compared.shift > 0) != lower_is_better else "worse"
    if -margin < compared.low_90 and compared.high_90 < margin:
        return "equivalent"
    return "not told apart"


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
    planned: Sequence[str] | None = None,
    margin: float = MARGIN,
    lower_is_better: bool = False,
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
        planned: treatments whose tests were planned beforehand: only they count in the
            corrections, and the others' adjusted p-values are ``nan``. By default all.
        margin, lower_is_better: of :func:`verdict`.

    Returns:
        A row a treatment but the baseline, with the fields of :class:`PairedComparison`, for each
        test ``<p>_holm`` and ``<p>_fdr``, adjusted over the planned rows, and ``verdict``, by
        ``p_permutation_holm`` (not planned: never better or worse).

    Raises:
        FlSimError: if a column, the baseline or a planned treatment is unknown, a unit has two
            values of one treatment, or the treatments do not have the same units.
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
    for name in planned or ():
        if name not in others:
            raise FlSimError(
                f"There is no treatment '{name}' in the column '{treatment}' to plan for."
                f"{did_you_mean(str(name), [str(c) for c in others])}"
            )
    result = pd.DataFrame(rows)
    if rows:
        counted = None if planned is None else result[treatment].isin(planned).to_numpy()
        result = adjusted(result, margin, lower_is_better, counted)
    return result


def adjusted(
    compared: "pd.DataFrame",
    margin: float = MARGIN,
    lower_is_better: bool = False,
    counted: NDArray[np.bool_] | None = None,
) -> "pd.DataFrame":
    """Correct comparisons for being many, and judge each; see :func:`compare_treatments`.

    Args:
        compared: a row a comparison, with the fields of :class:`PairedComparison`.
        margin, lower_is_better: of :func:`verdict`.
        counted: ``[rows]``, which of them count; by default all.
    """
    result = compared.copy()
    count = np.ones(len(result), dtype=np.bool_) if counted is None else counted
    for test in TESTS:
        given = np.where(count, result[test], np.nan)
        result[f"{test}_holm"] = holm(given)
        result[f"{test}_fdr"] = false_discovery_rate(given)
    fields = [field.name for field in dataclasses.fields(PairedComparison)]
    result["verdict"] = [
        verdict(PairedComparison(*line), p, margin, lower_is_better=lower_is_better)
        for line, p in zip(
            result[fields].itertuples(index=False), result["p_permutation_holm"], strict=True
        )
    ]
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


def _sign_flips(differences: Floats) -> float:
    """Return the two-sided p-value of the sign-flip permutation test of a mean of 0."""
    from scipy import stats

    if not np.any(differences):
        return 1.0
    exact = len(differences) <= _EXACT
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf if exact else RESAMPLES,
        vectorized=True,
        random_state=None if exact else numpy_generator(0, "sign flips"),
    )
    return float(found.pvalue)


def _said(row: "pd.Series[Any]", columns: Sequence[str]) -> str:
    return ", ".join(f"{column} {row[column]}" for column in columns)


def _mean(values: Floats) -> float:
    if not len(values):
        return math.nan
    with np.errstate(invalid="ignore"):
        return float(values.mean())


def _spread(
    values: Floats, level: float, limits: tuple[float, float], trials: float | None, error: float
) -> tuple[float, float]:
    """Return the ends of the interval of a mean: Wilson's or Student's, within limits."""
    from scipy import stats

    mean, seeds = float(values.mean()), len(values)
    deviation = float(values.std(ddof=1)) if np.ptp(values) > 0 else 0.0
    se = math.hypot(deviation / math.sqrt(seeds), error)
    quantile = float(stats.t.ppf((1 + level) / 2, seeds - 1))
    if trials is not None and trials > 0:
        most = limits[1] if math.isfinite(limits[1]) else trials  # of shares 1, of counts all
        if limits[0] <= mean <= most:
            low, high = _wilson(mean / most, se / most, seeds * trials, quantile)
            return most * low, most * high
    if not limits[0] <= mean <= limits[1]:  # a table from elsewhere may say anything
        limits = ENDLESS
    return within(mean, quantile * se, limits)


def _wilson(share: float, se: float, trials: float, quantile: float) -> tuple[float, float]:
    worth = share * (1 - share) / se**2 if se > 0 else math.inf
    # Two seeds, one at each end, are worth as little as one image.
    n = max(1.0, min(trials, worth))
    middle, wide = share + quantile**2 / (2 * n), 1 + quantile**2 / n
    half = quantile * math.sqrt(share * (1 - share) / n + (quantile / (2 * n)) ** 2)
    return max(0.0, (middle - half) / wide), min(1.0, (middle + half) / wide)


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
