"""Study: what of a payload survives a federation? DEC's carriers at upload, aggregate and release.

A malicious hospital writes its payload into each upload, with and without boosting its update, and
the server averages. The table has images recovered intact, damaged and lost and the carrier's error
in each round and stage; the figure shows them against rounds.

Run ``python -m experiments.dec_federated --help``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.console import make_progress, print_table
from experiments.figures import draw_lines, write_table
from experiments.run import run
from fl_sim.progress import SILENT, Progress
from fl_sim.results import STAGES

METRICS = (
    "images_intact",
    "images_damaged",
    "images_lost",
    "bit_error_rate",
    "value_error",
    "psnr",
    "ssim",
    "identification_correlation",
    "auc",
)
LABELS = {
    "images_intact": "images back bit for bit",
    "identification_correlation": "share of images identified",
    "auc": "utility (AUC)",
    "point": "round and stage",
}


def attacks(codec: dict[str, Any], external: Any, images: int) -> dict[str, dict[str, Any]]:
    """Return the attacks that are compared, by name."""
    common = {"name": "dec", "codec": codec, "external": external, "images": images}
    latents = {**common, "contents": "latents"}
    return {
        "Z in low bits": {**common, "carrier": "lsb"},
        "Z as entries": {**common, "carrier": "entries"},
        "y in place of weights": {**latents, "carrier": "weights"},
        "y in frozen weights": {**latents, "carrier": "frozen"},
    }


def study(
    base: dict[str, Any],
    compared: dict[str, dict[str, Any]],
    out: Path,
    boosts: tuple[float, ...] = (1.0,),
    seeds: tuple[int, ...] = (0,),
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run every attack, boost and seed; an interrupted study continues.

    Args:
        base: a federated scenario without its attack.
        compared: attacks by name.
        out: folder of the runs, the table and the figure.
        boosts: factors on the malicious update.
        seeds: of everything.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The table, a row an attack, boost, seed, round and stage.
    """
    import pandas as pd

    parts = []
    for name, attack in compared.items():
        for boost in boosts:
            for seed in seeds:
                series = name if boost == 1 else f"{name}, boosted {boost:g} times"
                federation = {**base["federation"], "boost": boost}
                scenario = {**base, "attack": attack, "federation": federation, "seed": seed}
                folder = series.replace(",", "").replace(" ", "-").lower()
                result = run(scenario, out / "runs" / f"{folder}-seed{seed}", data_root, progress)
                part = by_stage(result.table)
                part.insert(0, "series", series)
                part.insert(1, "seed", seed)
                parts.append(part)
                write_table(out / "dec_federated.csv", pd.concat(parts))
    frame = pd.concat(parts).reset_index(drop=True)
    frame["point"] = frame["round"].astype(str) + " " + frame["stage"].str[:3]
    metrics = ("images_intact", "identification_correlation", "auc")
    draw_lines(
        out / "dec_federated.png", frame, "point", metrics, "series",
        "What a federation lets through", LABELS,
    )  # fmt: skip
    return frame.drop(columns="point")


def by_stage(table: Any) -> Any:
    """Return a row a round and stage of a run's long table, raw extraction."""
    rows = table[table["extraction"].isin(["raw", "-"]) & table["metric"].isin(METRICS)]
    rows = rows[~rows["stage"].str.contains(":")]
    wide = rows.pivot_table(index=["round", "stage"], columns="metric", values="value")
    wide = wide.reset_index()
    order = wide["stage"].map({stage: place for place, stage in enumerate(STAGES)})
    wide = wide.assign(order=order).sort_values(["round", "order"])
    return wide[["round", "stage", *(metric for metric in METRICS if metric in wide)]]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/dec-federated"),
    full: Annotated[bool, typer.Option(help="More rounds, five seeds: for many cores.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Steal chest X-rays from one of four hospitals, with a codec from another collection."""
    console = Console()
    base = {
        "mode": "federated",
        "dataset": "pneumoniamnist",
        "model": "resnet18",
        "defense": "lwlrd",
        "measure": {"scratch_epochs": 0},
        "federation": {
            "hospitals": 4,
            "malicious": [0],
            "rounds": 8 if full else 3,
            "partition": "dirichlet",
            "alpha": 0.3,
            "engine": "ray" if full else "inprocess",
        },
    }
    compared = attacks({"name": "factorized"}, "chestmnist_nih1000.npz", 64)
    seeds = tuple(range(5)) if full else (0,)
    frame = study(base, compared, out, (1.0, 4.0), seeds, data_root, make_progress(console))
    print_table(console, frame, "Payloads in a federation")
    console.print(f"Table  {out / 'dec_federated.csv'}\nFigure {out / 'dec_federated.png'}")


if __name__ == "__main__":
    typer.run(main)
