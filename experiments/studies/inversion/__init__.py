"""Study: do images of what a released model takes for its classes show whom it was trained on?

Whoever has the file of a classifier can look for images that it is sure of (model inversion, with
the batch-norm statistics as prior). The same is done to a network as it was trained, cleaned by
LWLRD, as a student, and to one that never saw the training images. Each image is compared with the
training images of its class, beside the mean public image of the class and public images at random.

Run ``fl-sim study inversion --help``.
"""

from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    DISTILLATION,
    LWLRD,
    NONE,
    SKIN,
    STEPS_OF_PAPER,
    STUDIES,
    GridStudy,
    Values,
)
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

NO_SIGNAL: Values = {"label": "control: never saw them", "name": "scratch"}
SEEN = (
    "inversion_ssim",
    "inversion_ssim_floor_class_mean",
    "inversion_ssim_floor_random",
    "inversion_trained_on",
    "inversion_images",
    "inversion_sure",
    "auc",
)


def cells(full: bool) -> Values:
    """Look for images of the classes of skin networks as they leave.

    Three seeds; --full: five.
    """
    common: dict[str, Any] = {
        **SKIN,
        "model": "cnn",
        "training": STEPS_OF_PAPER,
        "inversion": {"images": 4},
        "measure": {"scratch_epochs": 0},
    }
    return {
        "seeds": list(range(5 if full else 3)),
        "scenario": common,
        "grid": {"defense": [NONE, LWLRD, DISTILLATION, NO_SIGNAL]},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a release: means over seeds, with their intervals."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    measured = set(table["metric"])
    known = [metric for metric in SEEN if metric in measured]
    for line in summarise(table, ["defense"], known, ["release"]).to_dict("records"):
        row = rows.setdefault(line["defense"], {"defense": line["defense"], "n": line["n"]})
        name = str(line["metric"])
        row |= {name: line["mean"], f"{name} low": line["low"], f"{name} high": line["high"]}
    return pd.DataFrame(rows.values())


STUDY = GridStudy("inversion", "What class representatives show of training images", tabulate)

TABLES = {
    "inversion": PublishedTable(
        ("inversion.csv",),
        {"defense": "release"},
        (
            Column("seeds", "n", format="count", metric="stolen_images"),
            Column("SSIM with the nearest training image", "inversion_ssim"),
            Column("of the class's mean public image", "inversion_ssim_floor_class_mean"),
            Column("of public images at random", "inversion_ssim_floor_random"),
            Column("nearest was trained on", "inversion_trained_on", format="percent"),
            Column("AUC of the task", "auc"),
        ),
    ),
}

STUDIES.register("inversion", "what images of a released model's classes show (model inversion)")(
    STUDY.study(cells, TABLES)
)
