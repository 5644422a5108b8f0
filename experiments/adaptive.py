"""Study: the attacker who knows the defence. Naive payloads and those placed where nothing moves.

Each attacker steals the same number of images, in a data lake that is cleaned before its model
leaves and in federations that are cleaned before every broadcast. The table has what arrived, raw
and at its best, beside what the model is worth; the figure shows the images.

Run ``python -m experiments.adaptive --help``.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from experiments.console import make_progress, print_table
from experiments.figures import write_table
from experiments.pictures import draw_grid
from experiments.result import Result
from experiments.run import run
from fl_sim.progress import SILENT, Progress

STAGES = ("upload", "release")
METRICS = (
    "images_intact",
    "images_lost",
    "bit_error_rate",
    "bit_error_rate_corrected",
    "ssim raw",
    "ssim strongest",
    "identification_correlation strongest",
    "auc",
)


def attackers(images: int, hospitals: int = 1) -> dict[str, dict[str, Any]]:
    """Return the attackers by name, from the naive to the adaptive.

    Args:
        images: how many each steals.
        hospitals: of the federation; payloads are then written for its average.
    """
    codes = {"name": "dec", "images": images, "codec": "png", "amplify": hospitals > 1}
    coding = {"name": "ldpc", "rate": 0.5}
    return {
        "low bits": {**codes, "carrier": "lsb"},
        "low bits of dead weights": {**codes, "carrier": {"name": "lsb", "elements": "dead"}},
        "signs of dead weights": {
            **codes, "carrier": {"name": "sign", "elements": "dead"},
        },
        "lattices in dead weights": {
            **codes, "carrier": {"name": "qim", "elements": "dead"},
        },
        "late signs, LDPC": {
            **codes, "coding": coding, "carrier": {"name": "sign", "order": "late"},
        },
        "lattices, LDPC": {**codes, "coding": coding, "carrier": {"name": "qim", "order": "late"}},
        "correlated values": {"name": "correlated", "images": images},
        "Transpose": {"name": "transpose", "images": images},
    }  # fmt: skip


def study(
    base: dict[str, Any],
    modes: dict[str, int],
    out: Path,
    images: int = 64,
    chosen: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] = (0,),
    rounds: int = 3,
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run every mode, attacker and seed; an interrupted study continues.

    Args:
        base: a scenario without mode, attack and federation.
        modes: number of hospitals by the mode's name; 1 for a data lake.
        out: folder of the runs, the table and the figures.
        images: how many each attacker steals.
        chosen: names of attackers; by default all.
        seeds: of everything.
        rounds: of the federations.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The table, a row a mode, attacker, seed and stage, of a federation's last round.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for mode, hospitals in modes.items():
        shown: dict[str, torch.Tensor] = {}
        for name, attack in attackers(images, hospitals).items():
            if chosen is not None and name not in chosen:
                continue
            for seed in seeds:
                scenario = {**base, **_mode(hospitals, rounds), "attack": attack, "seed": seed}
                folder = f"{mode}-{name}-seed{seed}".replace(",", "").replace(" ", "-").lower()
                result = run(scenario, out / "runs" / folder, data_root, progress)
                rows += [
                    {"mode": mode, "attacker": name, "seed": seed, "stage": stage}
                    | _measured(result, stage)
                    for stage in STAGES
                ]
                write_table(out / "adaptive.csv", pd.DataFrame(rows))
                if seed == seeds[0]:
                    shown |= _pictures(result, name)
        title = f"{mode}: what {images} stolen images look like where the model arrives"
        draw_grid(out / f"adaptive-{hospitals}.png", shown, 8, title)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _mode(hospitals: int, rounds: int) -> dict[str, Any]:
    if hospitals == 1:
        return {"mode": "centralized"}
    federation = {"hospitals": hospitals, "rounds": rounds, "engine": "inprocess"}
    return {"mode": "federated", "federation": federation}


def _measured(result: Result, stage: str) -> dict[str, float]:
    summary = result.summary()
    rows = summary[summary["stage"] == stage]
    last = rows[rows["round"] == rows["round"].max()].iloc[0]
    return {metric: float(last[metric]) for metric in METRICS if metric in last}


def _pictures(result: Result, name: str) -> dict[str, torch.Tensor]:
    """The true images, and an attacker's best at release, for the figure's rows."""
    table = result.table
    rows = table[(table["stage"] == "release") & (table["metric"] == "ssim")]
    rows = rows[(rows["round"] == rows["round"].max()) & (rows["extraction"] != "strongest")]
    recovered = {k.removeprefix("release/"): v for k, v in result.recovered.items()}
    rows = rows[rows["extraction"].isin(recovered)]
    best = str(rows.loc[rows["value"].idxmax(), "extraction"])
    shown = {f"{name} (true)/raw": result.originals, f"{name}/{best}": recovered[best]}
    return {"original": result.originals, **shown}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/adaptive"),
    full: Annotated[bool, typer.Option(help="Five seeds, eight rounds: for many cores.")] = False,
    federated: Annotated[bool, typer.Option(help="Also federations of 4 and 16.")] = True,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Steal skin images from a ResNet18 that LWLRD cleans before it leaves."""
    console = Console()
    base = {
        "dataset": "dermamnist",
        "model": "resnet18",
        "defense": "lwlrd",
        "training": {"epochs": 8.0 if full else 3.0},
        "measure": {"scratch_epochs": 0},
    }
    modes = {"data lake": 1}
    if federated:
        modes |= {"FedAvg, 4 hospitals": 4, "FedAvg, 16 hospitals": 16}
        base["training"] = {"epochs": 1.0}
    frame = study(
        base, modes, out,
        seeds=tuple(range(5)) if full else (0,), rounds=8 if full else 2,
        data_root=data_root, progress=make_progress(console),
    )  # fmt: skip
    print_table(console, frame, "Attackers who know the defence")
    console.print(f"Table   {out / 'adaptive.csv'}\nFigures {out / 'adaptive-*.png'}")


if __name__ == "__main__":
    typer.run(main)
