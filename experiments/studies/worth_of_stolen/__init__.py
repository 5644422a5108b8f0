"""Study: what stolen images are worth, before and after a defence.

A thief wants a model, or images to train one on. So a fresh network is trained on what he took out,
with the labels that he saw, and measured on real test images: on what was uploaded and what was
released, each as the key gives it and restored; and beside these on the true images (ceiling), and
on those with shuffled labels (floor). The usability test of Li et al. (MELBA 2025:032), for
defences.

Run ``fl-sim study worth_of_stolen --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    DISTILLATION,
    FISHER_NOISE,
    LWLRD,
    NONE,
    SKIN,
    STEPS_OF_PAPER,
    STUDIES,
    UTILITY,
    GridStudy,
    Values,
    by_seed,
    settings_of,
    transpose,
)
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.figures import draw_bars

if TYPE_CHECKING:
    import pandas as pd

DEFENSES = (NONE, LWLRD, FISHER_NOISE, DISTILLATION)
TRAINED_ON = {
    "stolen_raw": "stolen, raw",
    "stolen": "stolen, restored",
    "originals": "true images",
    "shuffled": "true images, shuffled labels",
}
"""Kinds of images, as rows of a run and as the table call them."""
WHEN = {"upload": "before", "release": "after"}


def grid(
    model: Any = "cnn",
    images: int = 256,
    epochs: int = 40,
    seeds: Sequence[int] = (0, 1, 2),
    defenses: Sequence[Values] = DEFENSES,
    **base: Any,
) -> Values:
    """Return every defence of the same attacked model.

    Args:
        model: of the scenario, and what is trained on the stolen images.
        images: stolen by Transpose.
        epochs: of the training on them.
        seeds: of everything.
        defenses: values of the axis.
        base: further keys of every scenario.
    """
    common = {
        **SKIN,
        "model": model,
        "attack": settings_of(transpose(images)),
        "training": STEPS_OF_PAPER,
        "measure": {"usability_epochs": epochs},
    }
    return {
        "seeds": list(seeds),
        "scenario": {**common, **base},
        "grid": {"defense": list(defenses)},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a defence, seed and kind of images.

    ``auc`` is that of the network trained on them, ``auc of the model`` that of the model they were
    hidden in, as it left. SSIM is of the images that were trained on.
    """
    import pandas as pd

    names = {f"auc_trained_on_{kind}": kind for kind in TRAINED_ON}
    ssim = {"stolen_raw": "ssim raw", "stolen": "ssim strongest"}
    frame = by_seed(table, (*names, *ssim.values(), *UTILITY))
    rows = []
    for _, measured in frame.iterrows():
        for column, kind in names.items():
            stolen = kind in ssim
            if pd.isna(measured[column]):
                continue
            rows.append(
                {
                    "defense": measured["defense"],
                    "seed": measured["seed"],
                    "trained on": TRAINED_ON[kind],
                    "defended": WHEN[measured["stage"]] if stolen else "-",
                    "auc": measured[column],
                    "ssim": measured[ssim[kind]] if stolen else 1.0,
                    "auc of the model": measured["auc"],
                    "auc_scratch": measured["auc_scratch"],
                }
            )
    return pd.DataFrame(rows)


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw a bar a kind of images, a colour a defence."""
    when = table["defended"].map(lambda text: "" if text == "-" else f", {text} the defence")
    frame = table.assign(kind=table["trained on"] + when)
    labels = {"auc": "AUC of a network trained on them", "ssim": "their SSIM"}
    return draw_bars(path, frame, "kind", ("auc", "ssim"), "defense", title, labels)


STUDY = GridStudy("worth_of_stolen", "What stolen images are worth", tabulate, draw)


def cells(full: bool) -> Values:
    """Train on stolen skin images, raw and restored, before and after each defence."""
    return grid("resnet18", images=512, seeds=range(5)) if full else grid()


TABLES = {
    "worth_of_stolen": PublishedTable(
        ("worth_of_stolen.csv",),
        {"defense": "defence", "trained on": "trained on", "defended": "defended"},
        (
            Column("AUC", "auc"),
            Column("their SSIM", "ssim"),
            Column("AUC of the model", "auc of the model"),
        ),
        without={"defended": ("before",)},  # what no defence leaves
    ),
}

STUDIES.register("worth_of_stolen", "what stolen images are worth, before and after a defence")(
    STUDY.study(cells, TABLES)
)
