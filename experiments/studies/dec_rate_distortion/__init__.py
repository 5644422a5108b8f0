"""Study: how small, and how good? Channel configuration x EP or IT x decoder D or D1.

Figure 5 of Li, Ayache and Delingette (MELBA 2025:032): bits a pixel, P_ratio against gzip, PSNR and
MS-SSIM of stolen slices over HiFiC's latent and hyperlatent channels, with the generator's nine
residual blocks (D) and without (D1), the codec trained outside on other images (EP) or inside, with
the utility branch on its encoder (IT); and the utility beside them.

Run ``fl-sim study dec_rate_distortion --help``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import STUDIES, GridStudy, Values, by_seed, split_label
from experiments.tables.figures import draw_lines

if TYPE_CHECKING:
    import pandas as pd

CHANNELS = ((220, 320), (110, 160), (50, 80), (25, 40), (12, 20), (6, 10))
DECODERS = {"D": 9, "D1": 0}
VOLUMES = {"name": "hippocampus", "size": 64, "neighbours": True}
"""Sixty volumes: the first twenty are the attacker's, the others his victim's."""
METRICS = ("bpp", "p_ratio", "psnr", "ssim", "dice", "auc", "images_intact", "file_bytes")
LABELS = {"channels": "latent / hyperlatent channels"}


MULTI_SCALE = "ms_ssim"
"""With the number of scales behind it where images are too small for all five."""


def grid(
    images: int,
    external: Any,
    outside_model: Any,
    codec: Values,
    channels: Sequence[tuple[int, int]] = CHANNELS,
    decoders: Mapping[str, int] = DECODERS,
    seeds: Sequence[int] = (0,),
    **base: Any,
) -> Values:
    """Return every configuration of channels, scenario and decoder.

    Args:
        images: that are stolen.
        external: the dataset of the external scenario's codec.
        outside_model: the utility network of the external scenario.
        codec: HiFiC's settings that all cells share.
        channels: (latent, hyperlatent) channels.
        decoders: residual blocks by the decoder's name.
        seeds: of everything but the external codec.
        base: further keys of every scenario.
    """
    variants = []
    for latent, hyper in channels:
        for decoder, blocks in decoders.items():
            settings = {**codec, "latent": latent, "hyper": hyper, "residual_blocks": blocks}
            stolen = {"name": "dec", "carrier": "entries", "images": images}
            outside = {**stolen, "scenario": "external", "codec": settings, "external": external}
            inside = {**stolen, "scenario": "internal"}
            two_headed = {"name": "two_headed", "codec": settings}
            place = f"{decoder}, {latent}/{hyper}"
            variants += [
                {"label": f"EP, {place}", "attack": outside, "model": outside_model},
                {"label": f"IT, {place}", "attack": inside, "model": two_headed},
            ]
    scenario = {"mode": "centralized", "measure": {"scratch_epochs": 0}, **base}
    return {"seeds": list(seeds), "scenario": scenario, "grid": {"variant": variants}}


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a scenario and decoder (``series``), channels and seed, at upload."""
    scales = sorted(m for m in table["metric"].unique() if m.startswith(MULTI_SCALE))
    found = {f"{metric} raw": metric for metric in ("psnr", "ssim", *scales)}
    plain = [metric for metric in METRICS if metric not in found.values()]
    frame = by_seed(table, [*plain, *found], ["upload"]).rename(columns=found)
    frame = split_label(frame, "variant", ("scenario", "decoder", "channels"))
    frame.insert(0, "series", frame.pop("scenario") + ", " + frame.pop("decoder"))
    return frame.drop(columns="stage").dropna(axis=1, how="all")


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw rate, P_ratio and fidelity over channels, a line a scenario and decoder."""
    multi_scale = next((str(c) for c in table if str(c).startswith(MULTI_SCALE)), "ssim")
    metrics = ("bpp", "p_ratio", "psnr", multi_scale)
    return draw_lines(path, table, "channels", metrics, "series", title, LABELS)


STUDY = GridStudy(
    "dec_rate_distortion", "Compression and fidelity of stolen slices", tabulate, draw
)


def cells(full: bool) -> Values:
    """Steal hippocampus slices with HiFiC from other volumes, or trained inside.

    --full: all six configurations at full width, and five seeds.
    """
    codec: Values = {"name": "hific", "width": 1.0}
    if not full:
        codec |= {"width": 0.125, "lmbda": 0.05, "batch_size": 16, "max_steps": 500}
    return grid(
        200 if full else 64,
        {**VOLUMES, "volumes": 20, "min_foreground": 0},
        "unet",
        codec,
        CHANNELS if full else ((50, 80), (12, 20)),
        seeds=range(5) if full else (0,),
        dataset={**VOLUMES, "first_volume": 20},
        data={"public_images": 64},
        training={"epochs": 40 if full else 15, "batch_size": 32, "learning_rate": 1e-3},
    )


STUDIES.register("dec_rate_distortion", "how small codes are, and how good the images in them")(
    STUDY.study(cells)
)
