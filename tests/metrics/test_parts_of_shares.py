"""A share of a part of the images has the interval of as many as the part has."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fl_sim.metrics.intervals import metric_interval

SHARE, IMAGES = "membership_tpr_at_1_percent", "membership_members"


def _width(column: str, told: dict[str, list[float]]) -> float:
    def beside(metric: str) -> ArrayLike:
        return told.get(metric, [])

    found = metric_interval(column, np.array([0.02, 0.02, 0.02]), beside)
    return found.high - found.low


def test_it_is_that_of_the_parts_images_where_they_are_told() -> None:
    told = {IMAGES: [6000.0] * 3, f"{IMAGES}[held-out]": [60.0] * 3}
    whole, part = _width(SHARE, told), _width(f"{SHARE}[held-out]", told)
    assert part > 5 * whole
    assert _width(f"{SHARE}[lira, online]", told) == pytest.approx(whole)
