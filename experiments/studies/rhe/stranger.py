"""What a stranger has hidden in the base, with the head sealed and without: runs of scenarios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.studies.base import NONE, SKIN, STEPS_OF_PAPER, Values, dec, transpose
from experiments.sweep.start import sweep
from fl_sim.artifact import read_artifact
from fl_sim.progress import Progress
from fl_sim.words import STRONGEST

SEALED: Values = {"label": "sealed head", "name": "rhe", "base": "given", "learning_rate": 0.002}
_STRONGEST = {"ssim": "ssim", "identification_correlation": "identified"}
_SINGLE = {"identification_floor": "guessing", "auc": "auc", "sealed_bytes": "sealed_bytes"}


def grid(seeds: Sequence[int]) -> Values:
    """Return the runs: two attacks, undefended, and with the head sealed on the base as given.

    Args:
        seeds: of everything.
    """
    return {
        "seeds": list(seeds),
        "scenario": {**SKIN, "training": STEPS_OF_PAPER},
        "grid": {"model": ["cnn"], "attack": [transpose(64), dec(64)], "defense": [NONE, SEALED]},
    }


def rows_of_stranger(
    seeds: Sequence[int], out: Path, data_root: Path | None, progress: Progress
) -> list[dict[str, Any]]:
    """Run what has not ended, and return what was read from what left, a row a run.

    Args:
        seeds: of everything.
        out: folder of the runs.
        data_root: folder of data files.
        progress: where to report.
    """
    result = sweep(grid(seeds), out, 0, data_root=data_root, progress=progress)
    table = result.table
    rows = []
    for cell, lines in table[table["stage"] == "release"].groupby("cell", sort=False):
        first = lines.iloc[0]
        row = {
            "attack": first["grid.attack"],
            "defense": first["grid.defense"],
            "seed": int(first["seed"]),
        }
        strongest = lines[lines["extraction"] == STRONGEST].set_index("metric")["value"]
        single = lines.drop_duplicates("metric").set_index("metric")["value"]
        row |= {name: float(strongest[metric]) for metric, name in _STRONGEST.items()}
        row |= {name: single.get(metric, "") for metric, name in _SINGLE.items()}
        artifacts = result.out / "cells" / str(cell) / "artifacts"
        row["entries changed"] = len(changed_entries(artifacts))
        rows.append(row)
    return rows


def changed_entries(artifacts: Path) -> list[str]:
    """Return which entries of the file that left are not, to the bit, those that were handed over.

    Args:
        artifacts: folder of both files.
    """
    came, left = (
        read_artifact(artifacts / f"{stage}.safetensors").state for stage in ("upload", "release")
    )
    names = {*came, *left}
    return sorted(n for n in names if n not in came or n not in left or _differ(came[n], left[n]))


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.equal(one, other)
