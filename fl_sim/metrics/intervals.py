"""Confidence intervals of metrics: what a metric is says which interval its mean over seeds has."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from fl_sim.metrics.vocabulary import describe, metric_of, split_column
from fl_sim.statistics import Interval, Method, mean_interval

Beside = Callable[[str], ArrayLike]
"""``beside(metric) -> [seeds]``: another metric of the same stage and seeds, perhaps empty."""


def metric_interval(
    column: str, values: ArrayLike, beside: Beside, level: float = 0.95, method: Method = "t"
) -> Interval:
    """Return the mean of a metric over seeds, with an interval that stays in the metric's range.

    Shares and counts of images have Wilson's interval, with the images of each seed from beside.
    Where the metric's standard error over test images is there (``<metric>_error``), it is part of
    the interval: ``se^2 = s^2 / seeds + mean(error^2)``. All seeds share the test images, so that
    part does not shrink with more seeds. See :func:`fl_sim.statistics.mean_interval`.

    Args:
        column: the metric, perhaps with an extraction: ``"ssim strongest"``.
        values: ``[seeds]``.
        beside: what else was measured.
        level: of confidence, in (0, 1).
        method: ``"t"`` or ``"bootstrap"``, which knows seeds only.
    """
    about = metric_of(column)
    errors = _there(beside(f"{split_column(column)[0]}_error"))
    return mean_interval(
        values,
        level,
        method,
        limits=about.range,
        trials=_trials(column, beside),
        error=float(np.sqrt(np.square(errors).mean())) if len(errors) else 0.0,
    )


def _trials(column: str, beside: Beside) -> float | None:
    """Return how many images a share is of; those of its own part, where a table tells them."""
    found = describe(split_column(column)[0])
    about = found.metric
    if not about.trials:
        return None
    images = _there(beside(f"{about.trials}[{found.part}]")) if found.part else _there(())
    if len(images) == 0:
        images = _there(beside(about.trials))
    if len(images) == 0 and about.trials == "stolen_images":
        # Tables of earlier versions have the chance of a blind guess only.
        images = 1.0 / np.maximum(_there(beside("identification_chance")), 1e-9)
    return float(images.mean()) if len(images) else None


def _there(values: ArrayLike) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    given = np.asarray(values, dtype=np.float64).ravel()
    return given[np.isfinite(given)]
