"""Study: what a sealed head protects, and what it leaves: few-shot reconstruction in six arms.

A head is trained on few images of DermaMNIST on a base that was trained on others, and leaves in
one of six ways; an attacker who knows how reconstructs the images. Each attacker's row is written
as it comes, so that the study goes on where it was interrupted. Run ``fl-sim study rhe --help``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.studies.base import RESULTS, STUDIES, DataRoot, Out, Study
from experiments.studies.published_tables import Column, PublishedTable
from experiments.studies.rhe.arms import Bench, Cell, rows_of_cell
from experiments.studies.rhe.drawing import draw, draw_pictures, keep_picture
from experiments.studies.rhe.freezing import rows_of_freezing
from experiments.studies.rhe.stranger import rows_of_stranger
from experiments.studies.rhe.world import BASE, World, world_of
from experiments.tables.console import make_console, plain, print_table
from experiments.tables.figures import write_table
from fl_sim.bars import make_progress
from fl_sim.errors import unknown_name
from fl_sim.files import checksum, write_atomically
from fl_sim.progress import SILENT, Progress
from fl_sim.reconstruction.arms import ARMS, CLEAR
from fl_sim.statistics import mean_interval

if TYPE_CHECKING:
    import pandas as pd

NAME = "rhe"
MANY, MOST, SOME = 100_000, 2_560_000, 10_000
PICTURES = "pictures"
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
ARMS_TABLE, FURTHER_TABLE = "arms", "further"
AVERAGES = "mean of 3 hospitals"
PARTS = ("arms", "freezing", "stranger")
TITLE = "Images reconstructed from heads, found at 1 % false positives"


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
    results: Path = RESULTS / NAME,
) -> "pd.DataFrame":
    """Let every attacker attack whose rows are not there yet.

    Args:
        world: the case.
        wanted: attackers.
        seeds: of victims.
        out: folder of the study; rows are added to its ``ROWS``.
        progress: where to report.
        results: folder with rows that are kept.

    Returns:
        All rows that are there.
    """
    import pandas as pd

    bench = Bench(world, out / "shadows", progress)
    for cell in wanted:
        done = {tuple(map(str, row)) for row in read(out, results)[_IDENTITY].to_numpy()}
        left = [seed for seed in seeds if cell.key(seed) not in done]
        if not left:
            continue
        rows, shown, own = rows_of_cell(bench, cell, left)
        # Others may have written meanwhile: a run beside this one.
        write_table(out / ROWS, pd.concat([read(out), pd.DataFrame(rows)], ignore_index=True))
        if left[0] == seeds[0]:
            keep_picture(out / PICTURES, cell, shown, own)
    return read(out, results)


def read(*folders: Path) -> "pd.DataFrame":
    """Return the rows of folders, the first one's where several have an attacker and seed."""
    import pandas as pd

    found = [pd.DataFrame(columns=_IDENTITY)]
    found += [
        pd.read_csv(folder / ROWS, keep_default_na=False)
        for folder in folders
        if (folder / ROWS).is_file()
    ]
    return pd.concat(found[1:] or found, ignore_index=True).drop_duplicates(_IDENTITY)


def tabulate(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the study's table: a line an attacker, shares with Wilson's intervals over seeds."""
    import pandas as pd

    found = []
    for key, own in rows.groupby(KEYS, sort=False):
        line: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        main = (line["shadows"], line["reconstructor"]) == (MANY, "ridge")
        line |= {"table": ARMS_TABLE if main else FURTHER_TABLE}
        line |= {"seeds": len(own), "trials": int(own["trials"].sum())}
        for share in _SHARES:
            values = own[share].astype(float)
            interval = mean_interval(values, limits=(0.0, 1.0), trials=float(own["trials"].mean()))
            line |= {share: interval.mean, f"{share} low": interval.low}
            line |= {f"{share} high": interval.high}
        line |= {name: float(own[name].astype(float).mean()) for name in _MEANS}
        epsilon = pd.to_numeric(own["epsilon"], errors="coerce")
        line["epsilon"] = "" if epsilon.isna().all() else float(epsilon.mean())
        found.append(line)
    return pd.DataFrame(found)


Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--part", help="Only this part: arms, freezing or stranger; repeatable.", show_default=False
    ),
]


def command(
    out: Out = Path("runs/rhe"),
    data_root: DataRoot = None,
    parts: Parts = None,
    shadows: Annotated[int, typer.Option(min=20, help="Heads a ridge learns from.")] = MANY,
    convolutions: Annotated[
        int, typer.Option(min=20, help="Heads a network of transposed convolutions learns from.")
    ] = SOME,
    seeds: Annotated[int, typer.Option(min=2, help="Draws of victims.")] = 5,
    full: Annotated[
        bool, typer.Option("--full", help="Then 2.56 million heads once, for 7 images.")
    ] = False,
) -> None:
    """Reconstruct images from heads that leave in six ways, and what freezing a base costs.

    Rows are written as they come, and shadow heads kept; the same command goes on where it was.
    """
    console = make_console()
    progress = make_progress(console)
    wanted = _parts(parts)
    if "stranger" in wanted:
        rows = rows_of_stranger(range(1), out / "runs", data_root, progress)
        write_table(out / "stranger.csv", _frame(rows))
    world = world_of(out, data_root, progress=progress)
    if "freezing" in wanted:
        rows = [row for seed in range(3) for row in rows_of_freezing(world, seed)]
        write_table(out / "freezing.csv", _frame(rows))
    if "arms" in wanted:
        asked = cells(shadows, convolutions) + ([Cell(CLEAR, 1, MOST)] if full else [])
        conclude(out, measure(world, asked, range(seeds), out, progress), world)
        print_table(console, tabulate(read(out, RESULTS / NAME)), TITLE)
    console.print(f"Tables, rows and pictures are in {plain(out)}")


def conclude(out: Path, rows: "pd.DataFrame", world: World) -> None:
    """Write the table, the figure, the pictures and the provenance of rows.

    Args:
        out: folder of the study.
        rows: of attackers and seeds.
        world: the case.
    """
    import platform

    import numpy
    import torch

    table = tabulate(rows)
    write_table(out / f"{NAME}.csv", table)
    draw(out / f"{NAME}.png", table, TITLE)
    draw_pictures(out / "reconstructed.png", out / PICTURES)
    told = {
        "study": NAME,
        "rows": len(rows),
        "seeds": sorted({int(seed) for seed in rows["seed"]}),
        "data": [asdict(file) for file in world.dataset.files],
        "images": {
            "public": len(world.public.labels),
            "attacker": len(world.attacker.labels),
            "pool": len(world.pool.labels),
        },
        "base_sha256": checksum(out / BASE),
        "versions": {"torch": torch.__version__, "numpy": numpy.__version__},
        "python": platform.python_version(),
        "cpu_minutes": round(float(rows.drop_duplicates(_IDENTITY[:-1])["cpu_minutes"].sum())),
    }
    write_atomically(out / f"{NAME}.json", (json.dumps(told, indent=2) + "\n").encode())


def _parts(parts: Sequence[str] | None) -> tuple[str, ...]:
    for part in parts or ():
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
    return tuple(parts or PARTS)


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(rows)


_TELLS = (
    Column("found at 1 %", "tpr", "number", bounds=(0.0, 1.0)),
    Column("against trained heads", "tpr_strict", "number", bounds=(0.0, 1.0)),
    Column("nearest is own", "identified", "number", bounds=(0.0, 1.0)),
    Column("by guessing", "chance"),
    Column("MSE", "mse_own", metric="auc"),
    Column("MSE, null", "mse_null", metric="auc"),
    Column("AUC of the head", "auc"),
    Column("CPU minutes", "cpu_minutes", "count"),
)
_WHO = {"images": "images", "arm": "what leaves"}
TABLES = {
    "rhe": PublishedTable(
        (f"{NAME}.csv",),
        _WHO,
        _TELLS,
        {"table": ARMS_TABLE},
    ),
    "rhe_further": PublishedTable(
        (f"{NAME}.csv",),
        {**_WHO, "reconstructor": "reconstructor", "shadows": "shadow heads"},
        _TELLS,
        {"table": FURTHER_TABLE},
    ),
    "rhe_stranger": PublishedTable(
        ("stranger.csv",),
        {"attack": "hidden in the base", "defense": "what leaves"},
        (
            Column("SSIM, best", "ssim"),
            Column("found by correlation", "identified"),
            Column("by guessing", "guessing"),
            Column("entries that changed", "entries changed", "count"),
            Column("AUC", "auc"),
        ),
    ),
    "rhe_freezing": PublishedTable(
        ("freezing.csv",),
        {"way": "what is trained, on what"},
        (
            Column("AUC", "auc"),
            Column("trained parameters", "trained parameters", "count"),
            Column("CPU seconds", "cpu_seconds", "count"),
        ),
    ),
}

STUDIES.register(NAME, "what a sealed head protects: few-shot reconstruction in six arms")(
    Study(command, TABLES)
)
