"""Study: how small, and how good? Channel configuration x EP or IT x decoder D or D1.

Figure 5 of Li, Ayache and Delingette (MELBA 2025:032): bits a pixel, P_ratio against gzip, PSNR and
MS-SSIM of stolen slices over HiFiC's latent and hyperlatent channels, with the generator's nine
residual blocks (D) and without (D1), the codec trained outside on other images (EP) or inside, with
the utility branch on its encoder (IT); and the utility beside them.

Run ``python -m experiments.dec_rate_distortion --help``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.console import make_progress, print_table
from experiments.figures import draw_lines, numbers, write_table
from experiments.run import run
from fl_sim.progress import SILENT, Progress

CHANNELS = ((220, 320), (110, 160), (50, 80), (25, 40), (12, 20), (6, 10))
DECODERS = {"D": 9, "D1": 0}
SITE = {"name": "hippocampus", "size": 64, "neighbours": True}
"""Sixty volumes: the first twenty are the attacker's, the others his victim's."""
METRICS = ("bpp", "p_ratio", "psnr", "ssim", "dice", "auc", "images_intact", "file_bytes")
LABELS = {
    "channels": "latent / hyperlatent channels",
    "bpp": "bits a pixel",
    "p_ratio": "P_ratio (to gzip)",
    "psnr": "PSNR (dB)",
    "multi_scale": "MS-SSIM",
}


def study(
    base: dict[str, Any],
    external: Any,
    outside_model: Any,
    codec: dict[str, Any],
    out: Path,
    channels: tuple[tuple[int, int], ...] = CHANNELS,
    decoders: dict[str, int] | None = None,
    seeds: tuple[int, ...] = (0,),
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run every configuration, scenario, decoder and seed; an interrupted study continues.

    Args:
        base: a centralized scenario without model and attack.
        external: the dataset of the external scenario's codec.
        outside_model: the utility network of the external scenario.
        codec: HiFiC's settings that all cells share.
        out: folder of the runs, the table and the figure.
        channels: (latent, hyperlatent) channels.
        decoders: residual blocks by the decoder's name.
        seeds: of everything but the external codec.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The table, a row a cell.
    """
    import pandas as pd

    rows = []
    for latent, hyper in channels:
        for decoder, blocks in (decoders or DECODERS).items():
            settings = {**codec, "latent": latent, "hyper": hyper, "residual_blocks": blocks}
            for scenario, model in (
                ("external", outside_model),
                ("internal", {"name": "two_headed", "codec": settings}),
            ):
                attack: dict[str, Any] = {"name": "dec", "scenario": scenario, "carrier": "entries"}
                attack["images"] = base["images"]
                if scenario == "external":
                    attack |= {"codec": settings, "external": external}
                name = f"{'EP' if scenario == 'external' else 'IT'}, {decoder}"
                for seed in seeds:
                    cell = {k: v for k, v in base.items() if k != "images"}
                    cell |= {"model": model, "attack": attack, "seed": seed}
                    folder = f"{scenario}-{decoder}-{latent}-{hyper}-seed{seed}"
                    result = run(cell, out / "runs" / folder, data_root, progress)
                    measured = numbers(result.table, "upload", (*METRICS, *_multi_scale(result)))
                    rows.append(
                        {"series": name, "channels": f"{latent}/{hyper}", "seed": seed, **measured}
                    )
                    write_table(out / "dec_rate_distortion.csv", pd.DataFrame(rows))
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    multi_scale = next((c for c in frame if str(c).startswith("ms_ssim")), "ssim")
    draw_lines(
        out / "dec_rate_distortion.png", frame, "channels",
        ("bpp", "p_ratio", "psnr", str(multi_scale)), "series",
        "Compression and fidelity of stolen slices", {**LABELS, str(multi_scale): "MS-SSIM"},
    )  # fmt: skip
    return frame


def _multi_scale(result: Any) -> list[str]:
    names = result.table["metric"].unique()
    return sorted(name for name in names if name.startswith("ms_ssim"))


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/dec-rate"),
    full: Annotated[
        bool, typer.Option(help="All six configurations at full width, five seeds: for a GPU.")
    ] = False,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Steal hippocampus slices with HiFiC from another site's, or trained inside."""
    console = Console()
    base = {
        "mode": "centralized",
        "dataset": {**SITE, "first_volume": 20},
        "data": {"public_images": 64},
        "training": {"epochs": 40 if full else 15, "batch_size": 32, "learning_rate": 1e-3},
        "measure": {"scratch_epochs": 0},
        "images": 200 if full else 64,
    }
    codec: dict[str, Any] = {"name": "hific", "width": 1.0}
    if not full:
        codec |= {"width": 0.125, "lmbda": 0.05, "batch_size": 16, "max_steps": 500}
    frame = study(
        base, {**SITE, "volumes": 20, "min_foreground": 0}, "unet", codec, out,
        CHANNELS if full else ((50, 80), (12, 20)),
        seeds=tuple(range(5)) if full else (0,),
        data_root=data_root, progress=make_progress(console),
    )  # fmt: skip
    print_table(console, frame, "Rate and distortion of DEC")
    console.print(f"Table  {out / 'dec_rate_distortion.csv'}")
    console.print(f"Figure {out / 'dec_rate_distortion.png'}")


if __name__ == "__main__":
    typer.run(main)
