"""What a metric is says which interval its mean has."""

import numpy as np
import pytest

from fl_sim.metrics.intervals import metric_interval
from fl_sim.statistics import mean_interval


def beside(**values: list[float]):
    return lambda name: values.get(name, [])


def test_shares_and_counts_of_images_know_how_many_there_were() -> None:
    found = "identification_correlation strongest"
    perfect = metric_interval(found, [1.0] * 3, beside(stolen_images=[64.0] * 3))
    assert perfect == mean_interval([1.0] * 3, limits=(0, 1), trials=64) and perfect.low > 0.9
    assert perfect == metric_interval(found, [1.0] * 3, beside(identification_chance=[1 / 64] * 3))
    counts = metric_interval("images_intact", [64.0] * 3, beside(stolen_images=[64.0] * 3))
    assert counts.high == pytest.approx(64.0) and counts.low == pytest.approx(64 * perfect.low)
    unknown = metric_interval(found, [1.0] * 3, beside())
    assert (unknown.low, unknown.high) == (1.0, 1.0)


def test_seeds_and_test_images_both_count() -> None:
    values = [0.90, 0.91, 0.92]
    alone = metric_interval("auc", values, beside())
    both = metric_interval("auc", values, beside(auc_error=[0.01, 0.02, 0.03]))
    error = np.sqrt(np.mean(np.square([0.01, 0.02, 0.03])))
    assert both == mean_interval(values, limits=(0, 1), error=float(error))
    assert both.high - both.low > 2 * (alone.high - alone.low)
    assert 0 < both.low < both.high < 1
    # That error is of AUC as measured, not of its floor.
    floor = metric_interval("auc_floor_scratch", values, beside(auc_error=[0.01] * 3))
    assert floor == alone


def test_unbounded_metrics_keep_students() -> None:
    values = [3.0, 5.0, 1.0]
    assert metric_interval("made up", values, beside()) == mean_interval(values)
