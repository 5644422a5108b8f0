"""Study: every defence, and every control of one, against Transpose and payloads in three places.

The grids ``defenses-dermamnist`` (ResNet18) and ``defenses-dermamnist-cnn``: each seed's attacked
models are trained once, and every defence starts from them with the same held-out images. Controls
are trained with the views and the budget of consistent distillation: fine-tuning, training from
scratch, the owner's own training, and the attacked network itself. The table
has what is left to extract, what the model is worth and what cleaning cost; the planned tests
compare consistent distillation with each control; the figures show the trade, and the images.

Run ``fl-sim study defenses --help``.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.run.folder import load_pictures
from experiments.run.shipped import find
from experiments.run.toml_file import read_toml
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
    by_seed,
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
from fl_sim.statistics import adjusted, compare_paired, pareto_front

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GRIDS = {"resnet18": "defenses-dermamnist", "cnn": "defenses-dermamnist-cnn"}
MEMORY, HIDDEN, HONEST = "Transpose", "DEC in three places", "none"
PLACES = ("lattices", "dead", "low")
SEEN = {
    MEMORY: (
        "ssim raw",
        "ssim chosen",
        "ssim strongest",
        "identification_distance strongest",
        "identification_correlation chosen",
        "identification_correlation strongest",
        "auc",
        "seconds",
    ),
    HIDDEN: (*(f"images_intact[{place}]" for place in PLACES), "auc"),
    HONEST: ("auc",),
}
PICTURED = {
    "LWLRD, SGD 1e-2 to 1e-4": "LWLRD",
    "consistent distillation": "consistent distillation",
}
"""Defences in the picture, by their labels in the grid."""
STUDENT = "consistent distillation"
PLANNED = (
    "none",
    "none, same views",
    "fine-tuning, SGD 1e-4",
    "fine-tuning, same views",
    "LWLRD, SGD 1e-2 to 1e-4",
    "LWLRD, same views",
    "from scratch, same views",
    "trusted training, same views",
)
"""What consistent distillation is tested against, in AUC; chosen before the rows were there."""
FLOORS = (
    "ssim_floor_mean",
    "ssim_floor_random",
    "identification_chance",
    "identification_floor",
    "identification_floor_high",
    "auc_floor_scratch",
)
MEMORY_FOUND, MEMORY_AUC = f"{MEMORY}: identification_correlation chosen", f"{MEMORY}: auc"


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a network and defence: means over seeds with their intervals, at release.

    ``"<attack>: <metric>"``, with ``" low"`` and ``" high"`` of the 95 % interval; floors stand
    without an attack.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for attack, metrics in SEEN.items():
        own = table[table["grid.attack"] == attack]
        if own.empty:
            continue
        wanted = (*metrics, *(FLOORS if attack == MEMORY else ()))
        measured = {name.partition(" ")[0] for name in own["metric"]}
        known = [metric for metric in wanted if metric.partition(" ")[0] in measured]
        lines = summarise(own, ["model", "defense"], known, ["release"])
        for line in lines.to_dict("records"):
            row = rows.setdefault((line["model"], line["defense"]), {})
            row[f"{attack}: n"] = line["n"]
            shared = line["metric"] in FLOORS
            name = str(line["metric"]) if shared else f"{attack}: {line['metric']}"
            row[name] = line["mean"]
            if not shared:
                row |= {f"{name} low": line["low"], f"{name} high": line["high"]}
    keys = [dict(zip(("model", "defense"), key, strict=True)) for key in rows]
    frame = pd.DataFrame([key | row for key, row in zip(keys, rows.values(), strict=True)])
    # The floor of utility is measured once a cell, the others for each extraction: all are equal.
    for floor in set(FLOORS) & set(frame.columns):
        own_mean = frame.groupby("model")[floor].transform("mean")
        frame[floor] = frame[floor].fillna(own_mean)
    return frame


def planned(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the planned tests: AUC of consistent distillation's controls less its own, by seed.

    A row a network and control, over the seeds that both have; Holm's correction counts these
    tests, a network at a time.
    """
    import pandas as pd

    frame = by_seed(table, ["auc"], ["release"]).dropna(subset=["auc"])
    frame = frame[frame["attack"] == MEMORY]
    parts = []
    for model, own in frame.groupby("model", sort=False):
        by_defense = own.pivot(index="seed", columns="defense", values="auc")
        if STUDENT not in by_defense:
            continue
        rows = []
        for control in [name for name in PLANNED if name in by_defense]:
            pairs = by_defense[[control, STUDENT]].dropna()
            compared = vars(compare_paired(pairs[control], pairs[STUDENT]))
            rows.append({"model": model, "defense": control, "baseline": STUDENT, **compared})
        parts.append(adjusted(pd.DataFrame(rows)))
    result = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return result.rename(columns={"low": "shift low", "high": "shift high"})


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw each defence's AUC against the share of memorised images still identified."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frame = table.dropna(subset=[MEMORY_FOUND, MEMORY_AUC])
    models = list(dict.fromkeys(frame["model"]))
    figure = Figure(figsize=(9, 5.5 * len(models)), dpi=100, layout="constrained")
    panels = figure.subplots(len(models), squeeze=False)[:, 0]
    for panel, model in zip(panels, models, strict=True):
        _draw_trade(panel, frame[frame["model"] == model].reset_index(drop=True))
        panel.set_title(f"{title}: {model}", fontsize=9)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _draw_trade(panel: "Axes", frame: "pd.DataFrame") -> None:
    """Draw one network's defences; names stand beside the panel, in the order of their points."""
    best = pareto_front(frame[MEMORY_FOUND].to_numpy(), frame[MEMORY_AUC].to_numpy())
    ranks = frame[MEMORY_AUC].rank(method="first").to_numpy() - 1
    heights = (ranks + 0.5) / len(frame)
    for number, row in enumerate(frame.to_dict("records")):
        auc = row[MEMORY_AUC]
        ends = [row[f"{MEMORY_AUC} low"], row[f"{MEMORY_AUC} high"]]
        panel.errorbar(
            row[MEMORY_FOUND],
            auc,
            yerr=[[auc - ends[0]], [ends[1] - auc]],
            fmt="o" if best[number] else ".",
            markersize=8,
            capsize=2,
            elinewidth=0.6,
            color="C2" if best[number] else "0.4",
        )
        panel.annotate(
            str(row["defense"]),
            (row[MEMORY_FOUND], auc),
            fontsize=7,
            va="center",
            xytext=(1.08, heights[number]),
            textcoords=("axes fraction", "axes fraction"),
            weight="bold" if best[number] else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.5, "relpos": (0, 0.5)},
        )
    if "auc_floor_scratch" in frame:
        floor = float(frame["auc_floor_scratch"].mean())
        panel.axhline(floor, color="C3", linestyle="--", linewidth=0.8)
        panel.annotate("from scratch on the held-out images", (0.5, floor), fontsize=7, color="C3")
    panel.set_xlabel("share of memorised images identified in what left (attacker's own choice)")
    panel.set_ylabel("AUC, 95 % interval")
    panel.set_xlim(-0.03, 1.03)
    panel.grid(alpha=0.3)


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


def grids() -> dict[str, dict[str, Any]]:
    """Return the shipped grids as they are written, by the network's part of the study."""
    return {part: read_toml(find(name, "grid"), "grid") for part, name in GRIDS.items()}


STUDY = GridStudy(
    "defenses",
    "Defences at release: what is still identified, and what the model is worth",
    tabulate,
    draw,
    further={"planned": planned},
)


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
    STUDY.show(grids(), out, how)
    cells = Grid.of(grids()["resnet18"], overrides=changes or ())
    shown = headline_cells(cells, out / "resnet18")
    if shown:
        draw_headline(out / "headline.png", shown)


HIDDEN_COLUMNS = (
    Column("lattices", "DEC in three places: images_intact[lattices]", bounds=OF_64),
    Column("dead", "DEC in three places: images_intact[dead]", bounds=OF_64),
    Column("low bits", "DEC in three places: images_intact[low]", bounds=OF_64),
    Column("AUC of that model", "DEC in three places: auc"),
)
EARLIER = PublishedTable(
    ("defenses_means.csv",),
    {"defense": "defence"},
    (
        Column("SSIM, raw", "Transpose: ssim raw"),
        Column("SSIM, best", "Transpose: ssim strongest"),
        Column("found, best", f"Transpose: {FOUND}"),
        Column("AUC", "Transpose: auc"),
        *HIDDEN_COLUMNS,
        Column("seconds", "Transpose: seconds"),
    ),
)
"""Means of three seeds that were measured before rows were kept and controls were there."""


def table_of(model: str) -> PublishedTable:
    """Return the published table of one network's defences."""
    return PublishedTable(
        ("defenses.csv",),
        {"defense": "defence"},
        (
            Column("seeds", "Transpose: n", format="count", metric="stolen_images"),
            Column("SSIM, raw", "Transpose: ssim raw"),
            Column("SSIM, chosen", "Transpose: ssim chosen"),
            Column("SSIM, best", "Transpose: ssim strongest"),
            Column("found, chosen", "Transpose: identification_correlation chosen"),
            Column("found, best", f"Transpose: {FOUND}"),
            Column("AUC", "Transpose: auc"),
            *HIDDEN_COLUMNS,
            Column("AUC, not attacked", "none: auc"),
            Column("seconds", "Transpose: seconds"),
        ),
        where={"model": model},
    )


TESTS = PublishedTable(
    ("planned.csv",),
    {"model": "network", "defense": "control", "verdict": "verdict"},
    (
        Column("seeds", "n", format="count", metric="stolen_images"),
        Column(
            "AUC of the control less that of the student", "shift", bounds=(-1.0, 1.0), metric="auc"
        ),
        Column("p", "p_permutation", metric="auc"),
        Column("p, Holm", "p_permutation_holm", metric="auc"),
    ),
)

BRIEF = PublishedTable(
    ("defenses.csv",),
    {"defense": "release"},
    (
        Column("SSIM, raw", "Transpose: ssim raw"),
        Column("SSIM, best", "Transpose: ssim strongest"),
        Column("found, best", f"Transpose: {FOUND}"),
        Column("AUC", "Transpose: auc"),
    ),
    where={"model": "CNN"},
    only={
        "defense": (
            "none",
            "LWLRD, SGD 1e-2 to 1e-4",
            STUDENT,
            "from scratch, same views",
            "trusted training, same views",
        )
    },
)
"""The README's: the published defence, this project's, and what each is measured against."""

TABLES = {
    "defenses_brief": BRIEF,
    "defenses": table_of("ResNet18"),
    "defenses_cnn": table_of("CNN"),
    "defenses_planned": TESTS,
    "defenses_means": EARLIER,
}

STUDIES.register("defenses", "every defence against memorised images and payloads in three places")(
    Study(main, TABLES, STUDY, lambda full: grids())
)
