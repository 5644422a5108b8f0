"""Statistics over seeds, against scipy, formulas and numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_sim.errors import FlSimError
from fl_sim.statistics import (
    PairedComparison,
    compare_paired,
    compare_treatments,
    false_discovery_rate,
    holm,
    mean_interval,
    pareto_front,
    verdict,
    within,
)

VALUES = np.array([0.61, 0.72, 0.55, 0.80, 0.66])


def test_the_t_interval_is_scipys() -> None:
    interval = mean_interval(VALUES, 0.9)
    low, high = stats.t.interval(0.9, 4, loc=VALUES.mean(), scale=stats.sem(VALUES))
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.mean == pytest.approx(VALUES.mean()) and interval.n == 5


def test_two_values_have_the_interval_of_the_table_of_t() -> None:
    # Mean 2, standard error 1, t(0.975, 1 degree of freedom) = 12.706.
    interval = mean_interval([1.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)


def test_the_bootstrap_repeats_and_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        sample = generator.exponential(size=30)
        interval = mean_interval(sample, 0.9, "bootstrap")
        covered += interval.low <= 1.0 <= interval.high
    assert 45 <= covered <= 60
    assert mean_interval(sample, 0.9, "bootstrap") == interval
    assert mean_interval(sample, 0.9, "bootstrap", seed=1) != interval
    # Skewed data: unlike a t interval, it reaches further on the side of the long tail.
    assert interval.high - interval.mean > interval.mean - interval.low


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_what_cannot_be_said_is_not_a_number(method: str) -> None:
    one = mean_interval([0.5], method=method)
    assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.high) and one.n == 1
    none = mean_interval([math.nan], method=method)
    assert math.isnan(none.mean) and none.n == 0 and none.missing == 1
    perfect = mean_interval([30.0, math.inf], method=method)
    assert perfect.mean == math.inf and math.isnan(perfect.low)
    some = mean_interval([1.0, math.nan, 3.0, 4.0], method=method)
    assert some.mean == pytest.approx(8 / 3) and (some.n, some.missing) == (3, 1)
    assert some.low < some.mean < some.high


def test_a_bootstrap_of_equal_values_gives_no_interval() -> None:
    interval = mean_interval([2.0, 2.0, 2.0], method="bootstrap")
    assert interval.mean == 2.0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_pairs_are_compared_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=12)
    after = before + rng.normal(0.4, 0.3, 12)
    found = compare_paired(after, before)
    t_test = stats.ttest_rel(after, before)
    interval = t_test.confidence_interval()
    assert found.p_t == pytest.approx(t_test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.shift == pytest.approx((after - before).mean())
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(after, before).pvalue)


def test_wilcoxons_smallest_p_value_by_hand() -> None:
    # All of five differences have one sign: 2 of the 2^5 assignments of signs are as extreme.
    found = compare_paired([1.1, 2.3, 3.2, 4.6, 5.5], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.p_wilcoxon == pytest.approx(2 / 32)


def test_pairs_that_lack_a_number_or_do_not_differ() -> None:
    lacking = compare_paired([1.0, math.nan, 3.0, 5.0], [0.0, 2.0, 1.0, 2.0])
    assert (lacking.n, lacking.missing) == (3, 1) and lacking.shift == pytest.approx(2.0)
    equal = compare_paired([1.0, math.inf], [1.0, math.inf])
    assert equal.shift == 0.0 and equal.p_wilcoxon == 1.0 and math.isnan(equal.p_t)
    one = compare_paired([1.0], [0.5])
    assert one.shift == 0.5 and math.isnan(one.p_t) and math.isnan(one.p_wilcoxon)
    assert math.isnan(one.low)
    with pytest.raises(FlSimError, match="not 2 and 1"):
        compare_paired([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; then never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    with_gap = holm([0.01, math.nan, 0.04])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.04]) and math.isnan(with_gap[1])
    assert holm([]).shape == (0,)


def test_the_false_discovery_rate_by_hand_and_as_scipy_has_it() -> None:
    # Sorted p times n / rank: 0.04, 0.04, 0.04, 0.04.
    assert false_discovery_rate([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04] * 4)
    given = np.array([0.2, 0.001, 0.03, 0.5])
    assert false_discovery_rate(given) == pytest.approx(stats.false_discovery_control(given))
    gap = false_discovery_rate([math.nan, 0.03])
    assert math.isnan(gap[0]) and gap[1] == pytest.approx(0.03)


def _frame() -> pd.DataFrame:
    rows = []
    for seed, level in enumerate((0.5, 0.6, 0.8)):
        for defense, shift in (("none", 0.0), ("lwlrd", -0.3), ("noise", -0.1)):
            wobble = 0.01 * seed * (defense != "none")
            rows.append({"defense": defense, "seed": seed, "ssim": level + shift + wobble})
    return pd.DataFrame(rows)


def test_defences_are_compared_in_pairs() -> None:
    found = compare_treatments(_frame(), "defense", ["seed"], "ssim", "none").set_index("defense")
    assert list(found.index) == ["lwlrd", "noise"]
    assert found.loc["lwlrd", "shift"] == pytest.approx(-0.29)
    # Models differ by more than a defence does, which does not matter between pairs.
    expected = stats.ttest_1samp([-0.3, -0.29, -0.28], 0.0).pvalue
    assert found.loc["lwlrd", "p_t"] == pytest.approx(expected)
    assert list(found["p_t_holm"]) == pytest.approx(list(holm(found["p_t"])))
    assert list(found["p_wilcoxon_fdr"]) == pytest.approx(
        list(false_discovery_rate(found["p_wilcoxon"]))
    )


def test_what_does_not_pair_is_refused() -> None:
    frame = _frame()
    with pytest.raises(FlSimError, match="'noise' has no value for seed 2"):
        compare_treatments(frame.iloc[:-1], "defense", ["seed"], "ssim", "none")
    with pytest.raises(FlSimError, match="several values for seed 0, defense none"):
        compare_treatments(pd.concat([frame, frame]), "defense", ["seed"], "ssim", "none")
    with pytest.raises(FlSimError, match="Did you mean 'none'"):
        compare_treatments(frame, "defense", ["seed"], "ssim", "nonne")
    with pytest.raises(FlSimError, match="Did you mean 'ssim'"):
        compare_treatments(frame, "defense", ["seed"], "sim", "none")


def test_the_pareto_front_by_hand() -> None:
    leakage = [0.9, 0.5, 0.5, 0.2, 0.1, 0.1, math.nan]
    utility = [0.92, 0.90, 0.85, 0.86, 0.70, 0.70, 0.99]
    front = pareto_front(leakage, utility)
    assert list(front) == [True, True, False, True, True, True, False]
    with pytest.raises(FlSimError, match="as many"):
        pareto_front([0.1], [])


def test_impossible_requests_are_sentences() -> None:
    with pytest.raises(FlSimError, match="between 0 and 1"):
        mean_interval(VALUES, 95)
    with pytest.raises(FlSimError, match="Did you mean 'bootstrap'"):
        mean_interval(VALUES, method="bootstrp")


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.97, 1.0, 0.95], (0.0, 1.0)),
        ([0.01, 0.0, 0.08], (0.0, 1.0)),
        ([-0.9, 0.9], (-1.0, 1.0)),
        ([1.0, 90.0, 2.0], (0.0, math.inf)),
    ],
)
def test_intervals_stay_where_values_can_be(
    values: list[float], limits: tuple[float, float]
) -> None:
    plain, bound = mean_interval(values), mean_interval(values, limits=limits)
    assert plain.low < limits[0] or plain.high > limits[1]
    assert limits[0] <= bound.low < bound.mean < bound.high <= limits[1]


def test_the_logit_interval_by_hand() -> None:
    # Mean 0.8: logit log 4, slope 1 / (0.8 * 0.2); Student's half on that scale.
    interval = mean_interval([0.7, 0.8, 0.9], limits=(0.0, 1.0))
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3) / 0.16
    expected = [1 / (1 + math.exp(-(math.log(4) + sign * half))) for sign in (-1, 1)]
    assert [interval.low, interval.high] == pytest.approx(expected)
    # A narrow one is Student's, on any scale.
    near, student = (
        mean_interval([0.80, 0.801], limits=to) for to in ((-1, 1), (-math.inf, math.inf))
    )
    assert (near.low, near.high) == pytest.approx((student.low, student.high), abs=2e-4)
    assert student.symmetric and not interval.symmetric
    assert within(3.0, 0.0, (0.0, 10.0)) == (3.0, 3.0)
    assert within(1.0, 0.2, (0.0, 1.0)) == (0.8, 1.2)  # of a mean at the limit nothing is known
    # Values as far from a lower limit as from each other: no logarithm, which would say 0 to 148.
    assert within(1.0, 5.0, (0.0, math.inf)) == (0.0, 6.0)
    assert within(1.0, 1.0, (0.0, math.inf)) == pytest.approx((1 / math.e, math.e))


def test_shares_of_images_have_wilsons_interval() -> None:
    equal = mean_interval([1.0, 1.0, 1.0], limits=(0.0, 1.0), trials=64)
    quantile = stats.t.ppf(0.975, 2)
    assert equal.low == pytest.approx(192 / (192 + quantile**2)) and equal.high == pytest.approx(
        1.0
    )
    none = mean_interval([0.0, 0.0, 0.0], limits=(0.0, 1.0), trials=64)
    assert none.low == pytest.approx(0.0) and none.high == pytest.approx(1 - equal.low)
    counts = mean_interval([64.0, 64.0, 64.0], limits=(0.0, math.inf), trials=64)
    assert (counts.low, counts.high) == pytest.approx((64 * equal.low, 64.0))
    # As statsmodels and R have it, with the quantile of as many seeds that t is normal.
    many = mean_interval([0.3] * 10_000, limits=(0.0, 1.0), trials=0.01)  # a hundred images
    known = stats.binomtest(30, 100).proportion_ci(method="wilson")
    assert (many.low, many.high) == pytest.approx((known.low, known.high), abs=1e-4)
    # Seeds that differ by more than their images explain are worth fewer images.
    spread = mean_interval([0.1, 0.5, 0.9], limits=(0.0, 1.0), trials=64)
    assert spread.low < 0.12 and spread.high > 0.88
    one = mean_interval([1.0], limits=(0.0, 1.0), trials=64)
    assert math.isnan(one.low)


def test_the_error_that_seeds_share_does_not_shrink_with_their_number() -> None:
    values = [0.9, 0.9001] * 200
    alone, shared = mean_interval(values), mean_interval(values, error=0.01)
    assert alone.high - alone.low < 1e-4
    assert shared.high - shared.low == pytest.approx(2 * 1.966 * 0.01, rel=1e-3)


def test_the_permutation_test_counts_out_all_signs() -> None:
    # All of five differences have one sign: 2 of the 2^5 assignments of signs are as extreme.
    five = compare_paired([1.1, 2.3, 3.2, 4.6, 5.5], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.p_permutation == pytest.approx(2 / 32)
    # By hand: of the means of +-1 +-2 +-4, |mean| >= |1 + 2 - 4| / 3 in all but none; 8 of 8.
    assert compare_paired([1.0, 2.0, -4.0], [0.0] * 3).p_permutation == pytest.approx(1.0)
    # +-1 +-2 +3: sums +-6, +-4, +-2, 0, 0; as extreme as 4 are four of eight.
    assert compare_paired([-1.0, 2.0, 3.0], [0.0] * 3).p_permutation == pytest.approx(4 / 8)
    assert compare_paired([1.0, 2.0], [1.0, 2.0]).p_permutation == 1.0
    many = np.random.default_rng(0).normal(0.3, 1.0, 40)
    first, again = (compare_paired(many, np.zeros(40)) for _ in range(2))
    assert first.p_permutation == again.p_permutation
    assert first.p_permutation == pytest.approx(first.p_t, abs=0.02)


def _compared(shift: float, half_90: float) -> PairedComparison:
    ends = (shift - half_90, shift + half_90)
    return PairedComparison(shift, *ends, *ends, 9, 0, 0.5, 0.5, 0.5)


def test_a_verdict_says_equivalent_only_inside_the_margin() -> None:
    assert verdict(_compared(0.1, 0.05), 0.01) == "better"
    assert verdict(_compared(0.1, 0.05), 0.01, lower_is_better=True) == "worse"
    assert verdict(_compared(-0.1, 0.05), 0.01) == "worse"
    assert verdict(_compared(0.001, 0.003), 0.5) == "equivalent"
    assert verdict(_compared(0.001, 0.0041), 0.5) == "not told apart"
    assert verdict(_compared(0.1, 0.2), math.nan) == "not told apart"
    assert verdict(_compared(0.001, math.nan), 0.5) == "not told apart"


def test_only_planned_tests_count() -> None:
    rows = [
        {"defense": defense, "seed": seed, "auc": 0.8 + shift * (1 + 0.1 * seed)}
        for seed in range(8)
        for defense, shift in (("none", 0.0), ("a", 0.1), ("b", -0.1), ("c", 0.0), ("d", 0.05))
    ]
    frame = pd.DataFrame(rows)
    every = compare_treatments(frame, "defense", ["seed"], "auc", "none").set_index("defense")
    some = compare_treatments(
        frame, "defense", ["seed"], "auc", "none", planned=["a", "b"]
    ).set_index("defense")
    smallest = 2 / 2**8
    assert every.loc["a", "p_permutation_holm"] == pytest.approx(4 * smallest)
    assert some.loc["a", "p_permutation_holm"] == pytest.approx(2 * smallest)
    assert math.isnan(some.loc["d", "p_permutation_holm"])
    assert some.loc["d", "p_permutation"] == pytest.approx(smallest)
    assert list(every["verdict"]) == ["better", "worse", "equivalent", "better"]
    assert list(some["verdict"]) == ["better", "worse", "equivalent", "not told apart"]
    with pytest.raises(FlSimError, match="no treatment 'e'"):
        compare_treatments(frame, "defense", ["seed"], "auc", "none", planned=["e"])
