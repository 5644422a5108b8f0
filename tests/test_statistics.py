"""Statistics over seeds, against scipy, formulas and numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fl_sim.errors import FlSimError
from fl_sim.statistics import (
    compare_paired,
    compare_treatments,
    false_discovery_rate,
    holm,
    mean_interval,
    pareto_front,
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
    one = mean_interval([0.5], method=method)  # type: ignore[arg-type]
    assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.high) and one.n == 1
    none = mean_interval([math.nan], method=method)  # type: ignore[arg-type]
    assert math.isnan(none.mean) and none.n == 0 and none.missing == 1
    perfect = mean_interval([30.0, math.inf], method=method)  # type: ignore[arg-type]
    assert perfect.mean == math.inf and math.isnan(perfect.low)
    some = mean_interval([1.0, math.nan, 3.0, 4.0], method=method)  # type: ignore[arg-type]
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
        mean_interval(VALUES, method="bootstrp")  # type: ignore[arg-type]
