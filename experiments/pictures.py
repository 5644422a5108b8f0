"""Pictures of what was recovered."""

import io
from pathlib import Path

import torch

from fl_sim.artifact import write_atomically

ROW_NAMES = {
    "upload": "as uploaded",
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


def _row_name(name: str) -> str:
    stage, _, extraction = name.partition("/")
    if not extraction:
        return "original"
    how = "raw" if extraction == "raw" else f"{extraction} restoration"
    return f"{ROW_NAMES.get(stage, stage)},\n{how}"


def write_images(folder: Path, images: torch.Tensor) -> None:
    """Write images ``[n, channels, height, width]`` as numbered PNG files; black if not finite."""
    from PIL import Image

    for number, image in enumerate(torch.nan_to_num(images).clamp(0, 1)):
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(buffer, format="PNG")
        write_atomically(folder / f"{number:04d}.png", buffer.getvalue())
