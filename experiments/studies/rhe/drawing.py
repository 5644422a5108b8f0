"""The study's figure, and the picture of what was reconstructed."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.studies.rhe.arms import Cell
from experiments.tables.pictures import draw_rows
from fl_sim.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

_SHOWN, _OWN = "shown", "own"
_ORDER = (
    ("clear head", "ridge"),
    ("clear head", "convolutions"),
    ("distilled on 70 images", "ridge"),
    ("DP head, epsilon 100", "ridge"),
    ("DP head, epsilon 10", "ridge"),
    ("sealed head, decisions", "ridge"),
    ("sealed head", "ridge"),
)


def keep_picture(folder: Path, cell: Cell, shown: torch.Tensor, own: torch.Tensor) -> None:
    """Keep what was reconstructed, and the originals, as 8-bit pixels.

    Args:
        folder: of pictures.
        cell: whose.
        shown, own: ``[classes, channels, height, width]`` in [0, 1].
    """
    from safetensors.torch import save

    pixels = {_SHOWN: shown, _OWN: own}
    content = save({key: (value * 255).round().byte() for key, value in pixels.items()})
    write_atomically(_path(folder, cell), content)


def draw_pictures(path: Path, folder: Path, per_class: int = 1) -> Path | None:
    """Draw the first victim's images as the arms' attackers reconstruct them; write a PNG.

    Args:
        path: of the picture.
        folder: of pictures.
        per_class: images of a class in the victim's set.

    Returns:
        ``path``; ``None`` where nothing was kept.
    """
    from safetensors.torch import load_file

    rows: dict[str, torch.Tensor] = {}
    for arm, reconstructor in _ORDER:
        pattern = _path(folder, Cell(arm, per_class, 0, reconstructor)).name.replace("-0-", "-*-")
        kept = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
        if kept:
            pixels = load_file(kept[-1])
            rows.setdefault("original", pixels[_OWN] / 255)
            name = arm if reconstructor == "ridge" else f"{arm}, {reconstructor}"
            rows[name] = pixels[_SHOWN] / 255
    if not rows:
        return None
    return draw_rows(path, rows)


def _path(folder: Path, cell: Cell) -> Path:
    name = "-".join(cell.key(0)[:-1]).replace(" ", "_").replace(",", "").replace("'", "")
    return folder / f"{name}.safetensors"


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw what is found and what is nearest over the images in a set, a line an arm; a PNG.

    Args:
        path: of the figure.
        table: of the study.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = table[(table["reconstructor"] == "ridge") & (table["base"] == "trusted")]
    figure = Figure(figsize=(8.6, 3.8), dpi=110)
    panels = figure.subplots(1, 2)
    measures = {"tpr": "found at 1 % false positives", "identified": "nearest image is an own one"}
    for panel, (column, words) in zip(panels, measures.items(), strict=True):
        for arm, lines in shown.groupby("arm", sort=False):
            lines = lines.sort_values("shadows").drop_duplicates("images", keep="last")
            lines = lines.sort_values("images")
            below, above = (
                lines[column] - lines[f"{column} low"],
                lines[f"{column} high"] - lines[column],
            )
            errors = [below.clip(lower=0), above.clip(lower=0)]
            panel.errorbar(
                lines["images"],
                lines[column],
                yerr=errors,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label=str(arm),
            )
        floor = shown.drop_duplicates("images").sort_values("images")
        if column == "identified":
            panel.plot(floor["images"], floor["chance"], "k:", linewidth=1, label="guessing")
        panel.set_xscale("log")
        panel.set_xticks(
            sorted(set(shown["images"])), [str(n) for n in sorted(set(shown["images"]))]
        )
        panel.minorticks_off()
        panel.set_xlabel("images that the head was trained on")
        panel.set_ylabel(words)
        panel.grid(alpha=0.3)
    handles, texts = panels[1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncol=4, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.13, 1, 0.99))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())
