"""Study: does Gaussian noise on the exported model stop DEC? Utility and PSNR against sigma.

The curves of figures 10 and 11 of Li, Ayache and Delingette (MELBA 2025:032): entropy codes Z in
the lowest bits against decoded latents y as numbers, in the external and the internal scenario. One
model is trained for each series and seed; every sigma starts from it.

Run ``fl-sim study dec_noise --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import STUDIES, GridStudy, Values, by_seed
from experiments.tables.figures import draw_lines

if TYPE_CHECKING:
    import pandas as pd

SIGMAS = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2)
VOLUMES = {"name": "hippocampus", "size": 64}
"""Sixty volumes: the first twenty are the attacker's, the others his victim's."""
METRICS = {
    "dice": "dice",
    "auc": "auc",
    "psnr raw": "psnr",
    "ssim raw": "ssim",
    "ms_ssim_3 raw": "ms_ssim_3",
    "images_intact": "images_intact",
    "images_damaged": "images_damaged",
}
"""Columns of the table by the sweep's names."""
LABELS = {"sigma": "standard deviation of the noise"}


def series(codec: Values, external: Any, model: Any) -> list[Values]:
    """Return the lines of the figure: scenario x contents, with the carrier that suits each.

    Args:
        codec: of all.
        external: what the external scenario's is trained on.
        model: of the external scenario; the internal one's has a second head.
    """
    outside = {"name": "dec", "scenario": "external", "codec": codec, "external": external}
    inside = {"name": "dec", "scenario": "internal"}
    two_headed = {"name": "two_headed", "codec": codec}
    latents = {"contents": "latents", "carrier": "entries"}
    lines = [
        ("EP, Z in low bits", {**outside, "carrier": "lsb"}, model),
        ("EP, y as entries", {**outside, **latents}, model),
        ("EP, y in frozen weights", {**outside, **latents, "carrier": "frozen"}, model),
        ("IT, Z in low bits", {**inside, "carrier": "lsb"}, two_headed),
        ("IT, y as entries", {**inside, **latents}, two_headed),
    ]
    return [{"label": name, "attack": attack, "model": net} for name, attack, net in lines]


def grid(
    lines: Sequence[Values],
    sigmas: Sequence[float] = SIGMAS,
    seeds: Sequence[int] = (0,),
    **base: Any,
) -> Values:
    """Return every series and deviation; ``base`` has further keys of every scenario."""
    noise = [{"label": f"{sigma:g}", "name": "gaussian_noise", "sigma": sigma} for sigma in sigmas]
    scenario = {"mode": "centralized", "measure": {"scratch_epochs": 0}, **base}
    return {
        "seeds": list(seeds),
        "scenario": scenario,
        "grid": {"variant": list(lines), "defense": noise},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a series, seed and sigma, at release."""
    frame = by_seed(table, METRICS, ["release"]).rename(columns=METRICS)
    frame = frame.rename(columns={"variant": "series"})
    frame.insert(2, "sigma", frame.pop("defense").astype(float))
    return frame.drop(columns="stage").dropna(axis=1, how="all")


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw utility and PSNR against sigma, a line a series."""
    utility = "dice" if "dice" in table else "auc"
    metrics = (utility, "psnr")
    return draw_lines(path, table, "sigma", metrics, "series", title, LABELS, log_x=True)


STUDY = GridStudy(
    "dec_noise", "Noise on the exported model: what it costs and what it stops", tabulate, draw
)


def cells(full: bool) -> Values:
    """Steal hippocampus slices with a codec from other volumes, or one trained inside.

    --full: HiFiC at full width, and five seeds.
    """
    codec: Values = {"name": "factorized", "max_steps": 1200}
    if full:
        codec = {"name": "hific", "latent": 50, "hyper": 80, "residual_blocks": 0}
    return grid(
        series(codec, {**VOLUMES, "volumes": 20, "min_foreground": 0}, "unet"),
        seeds=range(5) if full else (0,),
        dataset={**VOLUMES, "first_volume": 20},
        data={"public_images": 64},
        training={"epochs": 15, "batch_size": 32, "learning_rate": 1e-3},
    )


STUDIES.register("dec_noise", "does Gaussian noise on the exported model stop DEC")(
    STUDY.study(cells)
)
