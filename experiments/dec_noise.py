"""Study: does Gaussian noise on the exported model stop DEC? Utility and PSNR against sigma.

The curves of figures 10 and 11 of Li, Ayache and Delingette (MELBA 2025:032): entropy codes Z in
the lowest bits against decoded latents y as numbers, in the external and the internal scenario. One
model is trained for each series and seed; every sigma starts from it.

Run ``python -m experiments.dec_noise --help``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.console import make_progress, print_table
from experiments.figures import draw_lines, numbers, write_table
from experiments.run import run
from fl_sim.progress import SILENT, Progress

SIGMAS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2)
SITE = {"name": "hippocampus", "size": 64}
"""Sixty volumes: the first twenty are the attacker's, the others his victim's."""
METRICS = ("dice", "auc", "psnr", "ssim", "ms_ssim_3", "images_intact", "images_damaged")
LABELS = {"sigma": "standard deviation of the noise", "psnr": "PSNR of stolen images (dB)"}
LABELS |= {"dice": "utility (Dice)", "auc": "utility (AUC)"}


@dataclass(frozen=True)
class Series:
    """One line of the figure: its name, the attack, and the network that carries it."""

    name: str
    attack: dict[str, Any]
    model: Any


def series(codec: dict[str, Any], external: str | dict[str, Any], model: Any) -> list[Series]:
    """Return the lines of the figure: scenario x contents, with the carrier that suits each."""
    outside = {"name": "dec", "scenario": "external", "codec": codec, "external": external}
    inside = {"name": "dec", "scenario": "internal"}
    two_headed = {"name": "two_headed", "codec": codec}
    latents = {"contents": "latents", "carrier": "entries"}
    return [
        Series("EP, Z in low bits", {**outside, "carrier": "lsb"}, model),
        Series("EP, y as entries", {**outside, **latents}, model),
        Series("EP, y in frozen weights", {**outside, **latents, "carrier": "frozen"}, model),
        Series("IT, Z in low bits", {**inside, "carrier": "lsb"}, two_headed),
        Series("IT, y as entries", {**inside, **latents}, two_headed),
    ]


def study(
    base: dict[str, Any],
    lines: list[Series],
    out: Path,
    sigmas: tuple[float, ...] = SIGMAS,
    seeds: tuple[int, ...] = (0,),
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run every series, seed and sigma; an interrupted study continues.

    Args:
        base: keys of the scenario that all series share.
        lines: the series.
        out: folder of the runs, the table and the figure.
        sigmas: deviations of the noise.
        seeds: of everything.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The table, a row a series, seed and sigma.
    """
    import pandas as pd

    rows = []
    for line in lines:
        for seed in seeds:
            name = line.name.replace(",", "").replace(" ", "-").lower()
            scenario = {**base, "model": line.model, "attack": line.attack, "seed": seed}
            trained = out / "runs" / f"{name}-seed{seed}"
            run({**scenario, "defense": "none"}, trained, data_root, progress)
            for sigma in sigmas:
                cell = {**scenario, "defense": {"name": "gaussian_noise", "sigma": sigma}}
                folder = trained / f"sigma-{sigma:g}"
                result = run(cell, folder, data_root, progress, trained=trained)
                measured = numbers(result.table, "release", METRICS)
                rows.append({"series": line.name, "seed": seed, "sigma": sigma, **measured})
                write_table(out / "dec_noise.csv", pd.DataFrame(rows))
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    utility = "dice" if "dice" in frame else "auc"
    draw_lines(
        out / "dec_noise.png", frame, "sigma", (utility, "psnr"), "series",
        "Noise on the exported model: what it costs and what it stops", LABELS, log_x=True,
    )  # fmt: skip
    return frame


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/dec-noise"),
    full: Annotated[bool, typer.Option(help="HiFiC at full width, five seeds: for a GPU.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Steal hippocampus slices with a codec from another site's, or one trained inside."""
    console = Console()
    base = {
        "mode": "centralized",
        "dataset": {**SITE, "first_volume": 20},
        "data": {"public_images": 64},
        "training": {"epochs": 15, "batch_size": 32, "learning_rate": 1e-3},
        "measure": {"scratch_epochs": 0},
    }
    codec: dict[str, Any] = {"name": "factorized", "max_steps": 1200}
    if full:
        codec = {"name": "hific", "latent": 50, "hyper": 80, "residual_blocks": 0}
    lines = series(codec, {**SITE, "volumes": 20, "min_foreground": 0}, "unet")
    seeds = tuple(range(5)) if full else (0,)
    frame = study(base, lines, out, SIGMAS, seeds, data_root, make_progress(console))
    print_table(console, frame, "Gaussian noise against DEC")
    console.print(f"Table  {out / 'dec_noise.csv'}\nFigure {out / 'dec_noise.png'}")


if __name__ == "__main__":
    typer.run(main)
