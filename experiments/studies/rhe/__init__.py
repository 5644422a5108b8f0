"""Study: what a sealed head protects, and what it leaves: few-shot reconstruction in six arms.

A head is trained on few images of DermaMNIST on a base that was trained on others, and leaves in
one of six ways; an attacker who knows how reconstructs the images. Each attacker's row is written
as it comes, so that the study goes on where it was interrupted. Run ``fl-sim study rhe --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from experiments.studies.base import STUDIES, DataRoot, Out, Study
from experiments.studies.published_tables import Column, PublishedTable
from experiments.studies.rhe.arms import Bench, Cell, rows_of_cell
from experiments.studies.rhe.world import World, world_of
from experiments.tables.console import make_console, plain, print_table
from experiments.tables.figures import write_table
from fl_sim.bars import make_progress
from fl_sim.progress import SILENT, Progress
from fl_sim.reconstruction.arms import ARMS, CLEAR
from fl_sim.statistics import mean_interval

if TYPE_CHECKING:
    import pandas as pd

MANY, MOST, SOME = 100_000, 2_560_000, 10_000
ROWS = "arms_by_seed.csv"
"""A row an attacker and a seed."""
KEYS = ["arm", "base", "images", "shadows", "reconstructor"]
_IDENTITY = ["arm", "per_class", "shadows", "reconstructor", "seed"]
_SHARES = ("tpr", "tpr_strict", "identified")
_MEANS = (
    "chance",
    "mse_own",
    "mse_null",
    "mse_strict",
    "mse_shadows",
    "mse_class_mean",
    "auc",
    "cpu_minutes",
)
AVERAGES = "mean of 3 hospitals"


def cells(shadows: int = MANY, some: int = SOME) -> list[Cell]:
    """Return the attackers of the study, those that tell most first.

    Args:
        shadows: of a ridge.
        some: of the network of transposed convolutions.
    """
    found = [Cell(arm, n, shadows) for n in (1, 4, 10) for arm in ARMS if arm != AVERAGES]
    found += [Cell(AVERAGES, n, shadows) for n in (1, 4)]
    found += [Cell(CLEAR, n, some, "convolutions") for n in (1, 4)]
    found += [Cell(CLEAR, 1, some), Cell(CLEAR, 4, some)]
    return [*found, *(Cell(arm, 2, shadows) for arm in (CLEAR, "sealed head"))]


def measure(
    world: World,
    wanted: Sequence[Cell],
    seeds: Sequence[int],
    out: Path,
    progress: Progress = SILENT,
) -> "pd.DataFrame":
    """Let every attacker attack whose rows are not there yet.

    Args:
        world: the case.
        wanted: attackers.
        seeds: of victims.
        out: folder of the study; rows are added to its ``ROWS``.
        progress: where to report.

    Returns:
        All rows that are there.
    """
    import pandas as pd

    bench = Bench(world, out / "shadows", progress)
    for cell in wanted:
        done = {tuple(map(str, row)) for row in read(out)[_IDENTITY].to_numpy()}
        left = [seed for seed in seeds if cell.key(seed) not in done]
        if not left:
            continue
        rows, shown, own = rows_of_cell(bench, cell, left)
        # Others may have written meanwhile: a run beside this one.
        write_table(out / ROWS, pd.concat([read(out), pd.DataFrame(rows)], ignore_index=True))
        if left[0] == seeds[0]:
            keep_picture(out, cell, shown, own)
    return read(out)


def read(out: Path) -> "pd.DataFrame":
    """Return the rows of a folder; none where there is no file."""
    import pandas as pd

    path = out / ROWS
    if not path.is_file():
        return pd.DataFrame(columns=_IDENTITY)
    return pd.read_csv(path, keep_default_na=False)


def keep_picture(out: Path, cell: Cell, shown: torch.Tensor, own: torch.Tensor) -> None:
    """Keep what was reconstructed, and the originals, as 8-bit pixels."""
    from safetensors.torch import save

    from fl_sim.files import write_atomically

    name = "-".join(cell.key(0)[:-1]).replace(" ", "_").replace(",", "").replace("'", "")
    pixels = {"shown": shown, "own": own}
    content = save({key: (value * 255).round().byte() for key, value in pixels.items()})
    write_atomically(out / "pictures" / f"{name}.safetensors", content)


def tabulate(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the study's table: a line an attacker, shares with Wilson's intervals over seeds."""
    import pandas as pd

    found = []
    for key, own in rows.groupby(KEYS, sort=False):
        line: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        line |= {"seeds": len(own), "trials": int(own["trials"].sum())}
        for share in _SHARES:
            values = own[share].astype(float)
            interval = mean_interval(
                values, limits=(0.0, 1.0), trials=float(own["trials"].mean())
            )
            line |= {share: interval.mean, f"{share} low": interval.low}
            line |= {f"{share} high": interval.high}
        line |= {name: float(own[name].astype(float).mean()) for name in _MEANS}
        epsilon = pd.to_numeric(own["epsilon"], errors="coerce")
        line["epsilon"] = "" if epsilon.isna().all() else float(epsilon.mean())
        found.append(line)
    return pd.DataFrame(found)
