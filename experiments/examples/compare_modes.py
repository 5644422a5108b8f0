"""The same attack in a data lake and in a federation: ``python compare_modes.py`` runs both.

The same images are hidden by the same code in networks of the same kind; what differs is where.
"""

from pathlib import Path
from typing import Any

import pandas as pd

import fl_sim

COMMON: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 16, "train": 360, "validation": 60, "test": 100},
    "model": "cnn",
    "attack": {"name": "transpose", "images": 8, "memory_steps": 16},
    "defense": {"name": "lwlrd", "epochs": 1},
}
MODES: dict[str, Any] = {
    "data lake": {"mode": "centralized", "training": {"epochs": 4}},
    "federation": {
        "mode": "federated",
        "training": {"epochs": 4},
        "federation": {"hospitals": 3, "malicious": [0], "rounds": 2, "engine": "inprocess"},
    },
}
SHOWN = ["ssim raw", "ssim strongest", "identification_distance strongest", "auc"]


def example(out: Path) -> pd.DataFrame:
    """Run both, and return their stages below each other."""
    tables = {
        name: fl_sim.run({**COMMON, **mode}, out / mode["mode"]).summary()
        for name, mode in MODES.items()
    }
    return pd.concat(tables, names=["where"]).set_index(["round", "stage"], append=True)[SHOWN]


if __name__ == "__main__":
    print(example(Path("compare-modes")).to_string(float_format="%.2f"))
