"""What a stranger has hidden in the base, with the head sealed and without: runs of scenarios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.studies.base import NONE, SKIN, STEPS_OF_PAPER, Values, dec, transpose
from experiments.sweep.start import sweep
from fl_sim.progress import Progress

SEALED: Values = {"label": "sealed head", "name": "rhe", "base": "given", "learning_rate": 0.002}
_KEPT = ("ssim", "identification_correlation", "identification_floor", "auc", "sealed_bytes")


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
    """Run what has not ended, and return what was read from what left, a row a metric.

    Args:
        seeds: of everything.
        out: folder of the runs.
        data_root: folder of data files.
        progress: where to report.
    """
    result = sweep(grid(seeds), out, 0, data_root=data_root, progress=progress)
    table = result.table
    wanted = table[(table["stage"] == "release") & table["metric"].isin(_KEPT)]
    return [{str(key): value for key, value in row.items()} for row in wanted.to_dict("records")]
