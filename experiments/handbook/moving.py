"""The picture that moves: images go into a model, the model leaves in three ways, images come out.

It is drawn from a real run: the cells of the study ``defenses`` on DermaMNIST with the small
network, of the first seed, undefended, under LWLRD and under consistent distillation. Shown are the
first images in the run's own order, none chosen by how they look. It moves by CSS alone, and stands
still, with everything in it, where a reader wants no motion.

``python -m experiments.handbook.moving --data-root FOLDER`` runs the cells that ``runs/moving``
lacks, and writes ``docs/assets/moving.svg``.
"""

import argparse
import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.handbook.texts import ROOT
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.results import read_table
from fl_sim.words import STRONGEST

if TYPE_CHECKING:
    import torch

PICTURE = ROOT / "docs/assets/moving.svg"
GRID, SEED = "defenses-dermamnist-cnn", 0
LANES = {
    "none": ("no", "defence"),
    "LWLRD, SGD 1e-2 to 1e-4": ("LWLRD", "(published)"),
    "consistent distillation": ("consistent", "distillation"),
}
"""Ways to release, by their labels in the grid, and what the picture calls them."""
FLOORS = ("identification_floor", "ssim_floor_mean")
SHOWN = 4
CREDIT = "Images: DermaMNIST rebuilt from HAM10000 (Tschandl et al. 2018), CC BY-NC 4.0"
_SIDE, _STEP = 52, 55
_RAW, _RESTORED, _MODEL = 158, 402, (402, 34, 217, 64)
_TOP, _LANE = 172, 92

_STYLE = """
text { font: 16px system-ui, sans-serif; fill: #1a1a1a; }
.small { font-size: 13px; } .strong { font-weight: 700; }
.card { fill: #ffffff; } .box { fill: #e0f2f1; stroke: #00796b; stroke-width: 2; }
.line { stroke: #555; stroke-width: 1.5; fill: none; } .node { fill: #00796b; }
image { image-rendering: pixelated; }
.fly { opacity: 0; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f0f0; } .card { fill: #1e2129; } .box { fill: #10403b; stroke: #4db6ac; }
  .line { stroke: #bbb; } .node { fill: #4db6ac; }
}
@media (prefers-reduced-motion: no-preference) {
  .fly { animation: in 14s infinite both; } .model { animation: pulse 14s infinite both; }
  .out { animation: out 14s infinite both; transform-box: view-box; transform-origin: 510px 66px; }
  .line2 .out { animation-name: out2; } .line3 .out { animation-name: out3; }
  .words { animation: words 14s infinite both; }
  .line2 .words { animation-name: words2; } .line3 .words { animation-name: words3; }
}
@keyframes in { 0%, 4% { opacity: 1; transform: none; } 18% { opacity: 1; transform: var(--to); }
  20%, 100% { opacity: 0; transform: var(--to); } }
@keyframes pulse { 0%, 17%, 26%, 100% { stroke-width: 2; } 21% { stroke-width: 7; } }
@keyframes out { 0%, 26% { opacity: 0; transform: scale(0.1); } 34%, 97% { opacity: 1;
  transform: none; } 100% { opacity: 0; transform: none; } }
@keyframes out2 { 0%, 38% { opacity: 0; transform: scale(0.1); } 46%, 97% { opacity: 1;
  transform: none; } 100% { opacity: 0; transform: none; } }
@keyframes out3 { 0%, 52% { opacity: 0; transform: scale(0.1); } 60%, 97% { opacity: 1;
  transform: none; } 100% { opacity: 0; transform: none; } }
@keyframes words { 0%, 33% { opacity: 0; } 37%, 97% { opacity: 1; } 100% { opacity: 0; } }
@keyframes words2 { 0%, 45% { opacity: 0; } 49%, 97% { opacity: 1; } 100% { opacity: 0; } }
@keyframes words3 { 0%, 59% { opacity: 0; } 63%, 97% { opacity: 1; } 100% { opacity: 0; } }
"""


@dataclass(frozen=True)
class Lane:
    """A way to release, and what came out.

    Args:
        name: two lines.
        raw, restored: images as the key gives them, and after the attacker's best restoration.
        found: how many of the stolen images are identified at best.
        stolen: how many there are.
        ssim: mean of all stolen images, raw and restored.
        guessed: how many are found by guessing as often, with what the key tells.
        floor: SSIM of the public images' mean.
    """

    name: Sequence[str]
    raw: "torch.Tensor"
    restored: "torch.Tensor"
    found: int
    stolen: int
    ssim: tuple[float, float]
    guessed: int
    floor: float


def lane_of(folder: Path, name: Sequence[str]) -> tuple["torch.Tensor", Lane]:
    """Return the true images of a finished run, and what came out of its release.

    Args:
        folder: of the run.
        name: what the picture calls it.

    Raises:
        FlSimError: if the run recovered no images.
    """
    from experiments.run.folder import load_pictures
    from experiments.tables.pictures import kept_extractions

    pictures = load_pictures(folder)
    if "original" not in pictures:
        raise FlSimError(f"The run in {folder} recovered no images.")
    rows = read_table(folder / "results.csv")
    rows = rows[rows["stage"] == "release"].drop_duplicates(["metric", "extraction"])
    value = rows.set_index(["metric", "extraction"])["value"]
    found = value["identification_correlation", STRONGEST]
    guess, floor = (rows.loc[rows["metric"] == n, "value"].iloc[0] for n in FLOORS)
    best, stolen = kept_extractions(pictures, "release")[-1], len(pictures["original"])
    means = (float(pictures[f"release/{how}/ssim"].mean()) for how in ("raw", best))
    raw, restored = (pictures[f"release/{how}"][:SHOWN] for how in ("raw", best))
    ssim = (next(means), next(means))
    counts = (round(float(found) * stolen), stolen)
    lane = Lane(name, raw, restored, *counts, ssim, round(float(guess) * stolen), float(floor))
    return pictures["original"][:SHOWN], lane


def draw(path: Path, true: "torch.Tensor", lanes: Sequence[Lane]) -> Path:
    """Write the picture as SVG.

    Args:
        path: of the picture.
        true: images ``[n, channels, height, width]`` in [0, 1] that go into the model.
        lanes: ways to release, from above.
    """
    height = _TOP + _LANE * len(lanes) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" role="img" '
        'aria-labelledby="title desc">',
        '<title id="title">Stolen images on their way through a model</title>',
        f'<desc id="desc">{html.escape(described(lanes))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="card" width="640" height="{height}" rx="8"/>',
        *_top(true),
        *(part for number, lane in enumerate(lanes) for part in _lane(number, lane)),
        f'<text class="small strong" x="16" y="{height - 34}">{floors(lanes[-1])}</text>',
        f'<text class="small" x="16" y="{height - 12}">{CREDIT}</text>',
        "</svg>",
    ]
    return write_atomically(path, ("\n".join(parts) + "\n").encode())


def described(lanes: Sequence[Lane]) -> str:
    """Return in words what the picture shows."""
    said = (
        f"{' '.join(lane.name)}: {lane.found} of {lane.stolen} images can be identified; SSIM "
        f"{lane.ssim[0]:.2f} as it left, {lane.ssim[1]:.2f} after the best restoration."
        for lane in lanes
    )
    start = "Patient images go into a model, which leaves in three ways."
    return " ".join((start, *said, floors(lanes[-1])))


def floors(lane: Lane) -> str:
    """Return in words what an attacker reaches who knows nothing of the images."""
    return (
        f"For comparison: a guess finds {lane.guessed} of {lane.stolen}; the mean of public "
        f"images has SSIM {lane.floor:.2f}."
    )


def _top(true: "torch.Tensor") -> list[str]:
    """Draw the true images, their flight, and the model."""
    left, top, width, height = _MODEL
    middle = (left + width / 2, top + height / 2)
    drawn = ['<text x="16" y="62">patient</text><text x="16" y="82">images</text>']
    for number, image in enumerate(true):
        x, y = _RAW + number * _STEP, 40
        to = f"translate({middle[0] - x - _SIDE / 2}px, {middle[1] - y - _SIDE / 2}px)"
        drawn.append(f'<g id="true{number}">{_image(image, x, y)}</g>')
        drawn.append(f'<use class="fly" href="#true{number}" style="--to: {to}"/>')
    drawn += [
        f'<path class="line" d="M{_RAW + len(true) * _STEP} 66 H{left - 4}"/>',
        f'<rect class="box model" x="{left}" y="{top}" width="{width}" height="{height}" rx="8"/>',
        '<text class="strong" x="436" y="61">the trained model</text>',
        '<text class="small" x="436" y="81">looks and works like any</text>',
        *(f'<circle class="node" cx="420" cy="{y}" r="4"/>' for y in (50, 66, 82)),
        f'<text x="{_RAW}" y="{_TOP - 40}">what left, read with</text>',
        f'<text x="{_RAW}" y="{_TOP - 20}">the attacker\'s key</text>',
        f'<text x="{_RESTORED}" y="{_TOP - 40}">after the best</text>',
        f'<text x="{_RESTORED}" y="{_TOP - 20}">restoration</text>',
    ]
    return drawn


def _lane(number: int, lane: Lane) -> list[str]:
    """Draw one way to release."""
    top = _TOP + number * _LANE
    names = (
        f'<text x="16" y="{top + 24 + 20 * k}">{word}</text>' for k, word in enumerate(lane.name)
    )
    images = [
        _image(image, start + place * _STEP, top)
        for start, row in ((_RAW, lane.raw), (_RESTORED, lane.restored))
        for place, image in enumerate(row)
    ]
    words = (
        f'<text class="small" x="{_RAW}" y="{top + 70}">SSIM {lane.ssim[0]:.2f}</text>',
        f'<text class="small strong" x="{_RESTORED}" y="{top + 70}">SSIM {lane.ssim[1]:.2f}; '
        f"{lane.found} of {lane.stolen} found</text>",
    )
    return [
        f'<g class="line{number + 1}">',
        *names,
        f'<g class="out">{"".join(images)}</g>',
        f'<g class="words">{"".join(words)}</g>',
        "</g>",
    ]


def _image(pixels: "torch.Tensor", x: float, y: float) -> str:
    """Return an image as an element; black where it is not finite."""
    import torch
    from PIL import Image

    values = (torch.nan_to_num(pixels).clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values.permute(1, 2, 0).numpy().squeeze()).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}"'
    return f'<image {size} href="data:image/png;base64,{data}"/>'


def runs(out: Path, data_root: Path | None) -> Mapping[str, Path]:
    """Run the cells that are shown, where they have not ended, and return their folders.

    Raises:
        FlSimError: if one failed.
    """
    from experiments.run.shipped import find
    from experiments.run.toml_file import read_toml
    from experiments.studies.plan import narrowed
    from experiments.sweep.grid import Grid
    from experiments.sweep.start import sweep

    values = read_toml(find(GRID, "grid"), "grid")
    whole = Grid.of(values, overrides=[f"seeds=[{SEED}]"], device="cpu", name="moving")
    grid = narrowed({"": whole}, [f"defense={label}" for label in LANES])[""]
    result = sweep(grid, out, data_root=data_root)
    if len(result.failed):
        raise FlSimError(f"A run failed: {result.failed['error'].iloc[0]}")
    return {cell.labels["defense"]: out / "cells" / cell.name for cell in grid.cells}


def main() -> None:
    """Run what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/moving"), help="folder of the runs")
    parser.add_argument("--data-root", type=Path, help="folder of data files")
    given = parser.parse_args()
    folders = runs(given.out, given.data_root)
    shown = [lane_of(folders[label], name) for label, name in LANES.items()]
    print(draw(PICTURE, shown[0][0], [lane for _, lane in shown]))


if __name__ == "__main__":
    main()
