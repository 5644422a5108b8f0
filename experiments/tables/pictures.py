"""Pictures of what was recovered."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_sim.files import write_atomically

ROW_NAMES = {
    "upload": "as uploaded",
    "door": "past the door",
    "aggregate": "after averaging",
    "release": "as released",
}


def draw_grid(path: Path, images: dict[str, torch.Tensor], columns: int, title: str) -> Path:
    """Draw original and recovered images in rows, with the SSIM under each; write a PNG.

    Args:
        path: of the picture.
        images: ``"original"`` and ``"<stage>/<extraction>"``, each ``[n, channels, height,
            width]`` in [0, 1], and ``"<stage>/<extraction>/ssim"``, each ``[n]``.
        columns: images in a row, at most.
        title: above the grid.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ["original", *(n for n in images if n != "original" and not n.endswith("/ssim"))]
    count = min(columns, len(images["original"]))
    figure = Figure(figsize=(1.15 * count + 1.9, 1.35 * len(names) + 0.5), dpi=130)
    grid = figure.subplots(len(names), count, squeeze=False)
    for row, name in enumerate(names):
        similarity = images.get(f"{name}/ssim")
        for column in range(count):
            axes = grid[row][column]
            pixels = images[name][column].permute(1, 2, 0).clamp(0, 1).numpy()
            axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if similarity is not None:
                axes.set_xlabel(f"{float(similarity[column]):.2f}", fontsize=8, labelpad=2)
        mean = "" if similarity is None else f"\nmean SSIM {float(similarity.mean()):.2f}"
        grid[row][0].set_ylabel(
            _row_name(name) + mean, rotation=0, ha="right", va="center", fontsize=8
        )
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def draw_rows(path: Path, rows: Mapping[str, torch.Tensor], title: str = "") -> Path:
    """Draw rows of images, each with its name; write a PNG.

    Args:
        path: of the picture.
        rows: images ``[n, channels, height, width]`` in [0, 1], as many in each, by name.
        title: above them.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(map(len, rows.values()))
    figure = Figure(figsize=(0.8 * count + 2.2, 0.85 * len(rows) + 0.4), dpi=100)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        for place, image in zip(axes, images, strict=True):
            pixels = torch.nan_to_num(image).permute(1, 2, 0).clamp(0, 1).numpy()
            place.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def kept_extractions(pictures: Mapping[str, torch.Tensor], stage: str) -> list[str]:
    """Return the extractions of a stage whose images were kept, the one of highest SSIM last.

    Args:
        pictures: as :func:`experiments.run.folder.load_pictures` returns them.
        stage: ``"upload"``, ``"aggregate"`` or ``"release"``.
    """
    found = {
        name.split("/")[1]: float(pictures[f"{name}/ssim"].double().mean())
        for name in pictures
        if name.count("/") == 1 and name.startswith(f"{stage}/") and f"{name}/ssim" in pictures
    }
    # Where two are equal, the simpler one: raw.
    return sorted(found, key=lambda name: (found[name], name == "raw"))


def _row_name(name: str) -> str:
    stage, _, extraction = name.partition("/")
    if not extraction:
        return stage
    how = "raw" if extraction == "raw" else f"{extraction.replace('_', ' ')} restoration"
    return f"{ROW_NAMES.get(stage, stage)},\n{how}"


def write_images(folder: Path, images: torch.Tensor) -> None:
    """Write images ``[n, channels, height, width]`` as numbered PNG files; black if not finite."""
    for number, image in enumerate(images):
        write_atomically(folder / f"{number:04d}.png", png(image))


def png(image: torch.Tensor) -> bytes:
    """Return an image ``[channels, height, width]`` in [0, 1] as a PNG; black if not finite."""
    from PIL import Image

    pixels = (torch.nan_to_num(image).clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy().squeeze()).save(buffer, format="PNG")
    return buffer.getvalue()


def draw_blocks(
    path: Path, blocks: dict[str, dict[str, dict[str, torch.Tensor]]], columns: int
) -> Path:
    """Draw blocks of rows of images, one block an attacker, one panel a mode; write a PNG.

    The picture is 900 pixels wide. An image that is lost is a grey field.

    Args:
        path: of the picture.
        blocks: by attacker, mode and row, images ``[n, channels, height, width]`` in [0, 1]; the
            modes and rows of the first attacker and mode are those of all.
        columns: images in a row of a mode, at most.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(mode for block in blocks.values() for mode in block))
    rows = {
        attacker: list(dict.fromkeys(row for shown in block.values() for row in shown))
        for attacker, block in blocks.items()
    }
    height = 0.62 * sum(map(len, rows.values())) + 0.32 * len(blocks) + 0.4
    figure = Figure(figsize=(9, height), dpi=100)
    shares = [len(names) + 0.5 for names in rows.values()]
    bands = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=shares)[:, 0]
    for band, (attacker, block) in zip(bands, blocks.items(), strict=True):
        # A narrow column between two modes.
        widths = ([1.0] * columns + [0.25]) * len(modes)
        grid = band.subplots(
            len(rows[attacker]),
            len(widths) - 1,
            squeeze=False,
            width_ratios=widths[:-1],
            gridspec_kw={
                "left": 0.15,
                "right": 0.99,
                "top": 0.86,
                "bottom": 0.01,
                "wspace": 0.06,
                "hspace": 0.06,
            },
        )
        for line, place in np.ndindex(len(rows[attacker]), len(modes) - 1):
            grid[line][columns + place * (columns + 1)].set_axis_off()
        band.text(0.01, 0.93, attacker, fontsize=11, weight="bold", va="center")
        for place, mode in enumerate(modes):
            middle = 0.15 + 0.84 * (place + 0.5) / len(modes)
            band.text(middle, 0.93, mode, fontsize=11, ha="center", va="center")
            for line, row in enumerate(rows[attacker]):
                images = block.get(mode, {}).get(row)
                for column in range(columns):
                    _draw_cell(grid[line][place * (columns + 1) + column], images, column)
        for line, row in enumerate(rows[attacker]):
            grid[line][0].set_ylabel(row, rotation=0, ha="right", va="center", fontsize=10)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _draw_cell(axes: Any, images: torch.Tensor | None, number: int) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if images is None or number >= len(images):
        axes.set_facecolor("none")
        return
    if not bool(images[number].isfinite().all()) or not bool(images[number].any()):
        axes.set_facecolor("0.85")
        axes.text(0.5, 0.5, "lost", transform=axes.transAxes, ha="center", va="center", fontsize=8)
        return
    pixels = images[number].permute(1, 2, 0).clamp(0, 1).numpy()
    axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
