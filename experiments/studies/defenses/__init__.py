"""Study: every defence against images memorised by Transpose and payloads hidden in three places.

The grid ``defenses-dermamnist``: each seed's attacked models are trained once, and every defence
starts from them with the same held-out images. The table has what is left to extract, what the
model is worth and what cleaning cost; the figures show the trade, and the images.

Run ``fl-sim study defenses --help``.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.run.folder import load_pictures
from experiments.run.shipped import find
from experiments.studies.base import (
    STUDIES,
    Again,
    Changes,
    DataRoot,
    Gpus,
    GridStudy,
    How,
    Only,
    Out,
    Study,
    Workers,
)
from experiments.studies.published_tables import (
    FOUND,
    OF_64,
    Column,
    PublishedTable,
)
from experiments.sweep.grid import Grid
from experiments.tables.pictures import draw_blocks
from experiments.tables.summary import summarise
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.statistics import pareto_front

if TYPE_CHECKING:
    import pandas as pd

GRID = "defenses-dermamnist"
MEMORY, HIDDEN = "Transpose", "DEC in three places"
PLACES = ("lattices", "dead", "low")
SEEN = {
    MEMORY: (
        "ssim raw",
        "ssim strongest",
        "identification_distance strongest",
        "identification_correlation strongest",
        "auc",
        "seconds",
    ),
    HIDDEN: (*(f"images_intact[{place}]" for place in PLACES), "auc"),
}
PICTURED = {
    "LWLRD, SGD 1e-2 to 1e-4": "LWLRD",
    "consistent distillation": "consistent distillation",
}
"""Defences in the picture, by their labels in the grid."""
FLOORS = ("ssim_floor_mean", "ssim_floor_random", "identification_chance", "auc_floor_scratch")
MEMORY_FOUND, MEMORY_AUC = f"{MEMORY}: identification_correlation strongest", f"{MEMORY}: auc"


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a defence: means over seeds with their t intervals, at release.

    ``"<attack>: <metric>"``, with ``" low"`` and ``" high"`` of the 95 % interval; floors stand
    without an attack.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for attack, metrics in SEEN.items():
        own = table[table["grid.attack"] == attack]
        if own.empty:
            continue
        wanted = (*metrics, *(FLOORS if attack == MEMORY else ()))
        measured = {name.partition(" ")[0] for name in own["metric"]}
        known = [metric for metric in wanted if metric.partition(" ")[0] in measured]
        for line in summarise(own, ["defense"], known, ["release"]).to_dict("records"):
            row = rows.setdefault(str(line["defense"]), {"n": line["n"]})
            shared = line["metric"] in FLOORS
            name = str(line["metric"]) if shared else f"{attack}: {line['metric']}"
            row[name] = line["mean"]
            if not shared:
                row |= {f"{name} low": line["low"], f"{name} high": line["high"]}
    frame = pd.DataFrame([{"defense": name, **row} for name, row in rows.items()])
    # The floor of utility is measured once a cell, the others for each extraction: all are equal.
    for floor in set(FLOORS) & set(frame.columns):
        frame[floor] = frame[floor].fillna(frame[floor].mean())
    return frame


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw each defence's AUC against the share of memorised images that are still identified."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frame = table.dropna(subset=[MEMORY_FOUND, MEMORY_AUC]).reset_index(drop=True)
    best = pareto_front(frame[MEMORY_FOUND].to_numpy(), frame[MEMORY_AUC].to_numpy())
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    panel = figure.subplots()
    # Names stand beside the panel, in the order of their points, where none covers another.
    ranks = frame[MEMORY_AUC].rank(method="first").to_numpy() - 1
    heights = (ranks + 0.5) / len(frame)
    for number, row in enumerate(frame.to_dict("records")):
        auc = row[MEMORY_AUC]
        panel.errorbar(
            row[MEMORY_FOUND],
            auc,
            yerr=[[auc - row[f"{MEMORY_AUC} low"]], [row[f"{MEMORY_AUC} high"] - auc]],
            fmt="o" if best[number] else ".",
            markersize=8,
            capsize=2,
            elinewidth=0.6,
            color="C2" if best[number] else "0.4",
        )
        panel.annotate(
            str(row["defense"]), (row[MEMORY_FOUND], row[MEMORY_AUC]), fontsize=7, va="center",
            xytext=(1.08, heights[number]), textcoords=("axes fraction", "axes fraction"),
            weight="bold" if best[number] else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip
    if "auc_floor_scratch" in frame:
        floor = float(frame["auc_floor_scratch"].mean())
        panel.axhline(floor, color="C3", linestyle="--", linewidth=0.8)
        panel.annotate("from scratch on the held-out images", (0.5, floor), fontsize=7, color="C3")
    panel.set_xlabel("share of memorised images identified in what left (best extraction)")
    panel.set_ylabel("AUC, 95 % interval over seeds")
    panel.set_xlim(-0.03, 1.03)
    panel.set_title(title, fontsize=10)
    panel.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def headline_cells(cells: Grid, out: Path) -> dict[str, dict[str, Path]]:
    """Return the finished runs that the picture shows, of the first seed.

    Args:
        cells: the grid.
        out: folder of its sweep.
    """
    shown: dict[str, dict[str, Path]] = {}
    for cell in cells.cells:
        attack, defense = cell.labels["attack"], cell.labels["defense"]
        folder = out / "cells" / cell.name
        wanted = attack in SEEN and defense in PICTURED and (folder / "finished").exists()
        if wanted and PICTURED[defense] not in shown.get(attack, {}):
            shown.setdefault(attack, {})[PICTURED[defense]] = folder
    return shown


def draw_headline(path: Path, cells: Mapping[str, Mapping[str, Path]], columns: int = 7) -> Path:
    """Draw true images, as trained, and as they left under two defences; write a PNG.

    Args:
        path: of the picture.
        cells: folders of runs by attack (``MEMORY`` or ``HIDDEN``) and by the defence's name, as
            the picture calls it.
        columns: images in a row.

    Raises:
        FlSimError: if a run recovered nothing.
    """
    blocks: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for attack, runs in cells.items():
        for defense, folder in runs.items():
            pictures = load_pictures(folder)
            if "original" not in pictures:
                raise FlSimError(f"The run in {folder} recovered no images.")
            blocks.setdefault(attack, {})[defense] = _rows(pictures, attack)
    return draw_blocks(path, blocks, columns)


def _rows(pictures: Mapping[str, torch.Tensor], attack: str) -> dict[str, torch.Tensor]:
    if attack == HIDDEN:
        # The images of the second place, dead weights, in the order of the parts.
        part = len(pictures["original"]) // len(PLACES)
        pictures = {name: images[part : 2 * part] for name, images in pictures.items()}
    rows = {
        "true": pictures["original"],
        "as trained": pictures["upload/raw"],
        "as it left": pictures["release/raw"],
    }
    restored = {
        name: float(pictures[f"{name}/ssim"].mean())
        for name in pictures
        if name.startswith("release/") and not name.endswith(("/ssim", "/raw"))
    }
    if restored and attack == MEMORY:
        rows["restored"] = pictures[max(restored, key=lambda name: restored[name])]
    return rows


def grid() -> dict[str, Any]:
    """Return the shipped grid as it is written."""
    import tomllib

    return tomllib.loads(find(GRID, "grid").read_text(encoding="utf-8"))


STUDY = GridStudy(
    "defenses", "Defences at release: what is still identified, and what the model is worth",
    tabulate, draw,
)  # fmt: skip


def main(
    out: Out = Path("runs/defenses"),
    data_root: DataRoot = None,
    workers: Workers = None,
    gpus_per_cell: Gpus = 0.0,
    changes: Changes = None,
    only: Only = None,
    again: Again = False,
) -> None:
    """Clean attacked models in every way there is, and see what leaves.

    Draws images, too, of runs that are here.
    """
    how = How(data_root, workers, gpus_per_cell, changes or (), only=only or (), again=again)
    STUDY.show({"cells": grid()}, out, how)
    cells = Grid.of(grid(), overrides=changes or ())
    shown = headline_cells(cells, out / "cells")
    if shown:
        draw_headline(out / "headline.png", shown)


TABLES = {
    "defenses": PublishedTable(
        ("defenses.csv",),
        {"defense": "defence"},
        (
            Column("SSIM, raw", "Transpose: ssim raw"),
            Column("SSIM, best", "Transpose: ssim strongest"),
            Column("found", f"Transpose: {FOUND}"),
            Column("AUC", "Transpose: auc"),
            Column("lattices", "DEC in three places: images_intact[lattices]", bounds=OF_64),
            Column("dead", "DEC in three places: images_intact[dead]", bounds=OF_64),
            Column("low bits", "DEC in three places: images_intact[low]", bounds=OF_64),
            Column("AUC of that model", "DEC in three places: auc"),
            Column("seconds", "Transpose: seconds"),
        ),
    ),
}

STUDIES.register("defenses", "every defence against memorised images and payloads in three places")(
    Study(main, TABLES, STUDY, lambda full: {"cells": grid()})
)
