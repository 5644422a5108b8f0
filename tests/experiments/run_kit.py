"""A small data lake and a small federation, for tests of what happens to whole runs."""

from typing import Any

import pandas as pd

from fl_sim.results import without_timings

SMALL: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 8, "train": 60, "validation": 30, "test": 30},
    "model": "cnn",
    "attack": {"name": "transpose", "images": 4},
    "defense": {"name": "lwlrd", "epochs": 1},
    "data": {"public_images": 12},
    "measure": {"scratch_epochs": 1, "columns": 2},
    "training": {"batch_size": 32, "epochs": 1},
    "threads": 1,
}
CENTRALIZED: dict[str, Any] = {**SMALL, "mode": "centralized"}
FEDERATED: dict[str, Any] = {
    **SMALL,
    "mode": "federated",
    "federation": {"hospitals": 2, "rounds": 3, "engine": "inprocess"},
}
BOTH = {"centralized": CENTRALIZED, "federated": FEDERATED}


class PowerCut(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Compare two tables row by row, without timings."""
    pd.testing.assert_frame_equal(without_timings(one), without_timings(two))
