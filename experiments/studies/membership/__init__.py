"""Study: can it be told from a released model which patients' images it was trained on?

A network is trained as usual, unattacked, and leaves undefended, cleaned, as a student, or trained
with differential privacy. Sixteen reference models, each trained in the same way on half of all
images, tell what is usual for an image; RMIA and LiRA then tell training images from test images,
and the held-out images that a defence trained on from them. Two controls frame the numbers: a
network that never saw the training images, of which nothing can be told, and one that learned a few
images by heart.

Run ``fl-sim study membership --help``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    DISTILLATION,
    LWLRD,
    NONE,
    SKIN,
    STEPS_OF_PAPER,
    STUDIES,
    Again,
    Changes,
    DataRoot,
    Full,
    Gpus,
    GridStudy,
    How,
    Only,
    Out,
    Study,
    Values,
    Workers,
)
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.summary import summarise

if TYPE_CHECKING:
    import pandas as pd

CAPPED: Values = {"label": "capped distillation, 64 bytes", "name": "capped_distillation"}
NO_SIGNAL: Values = {"label": "control: never saw them", "name": "scratch"}
OVERFITTED: Values = {"label": "control: overfitted", "value": "none"}
GROUP_NORM: Values = {"label": "none, group norm", "value": "none"}
PRIVATE: Values = {"label": "none, trained with DP", "value": "none"}

AUC, SURE, FAIRLY = (
    "membership_auc",
    "membership_tpr_at_1_per_mille",
    "membership_tpr_at_1_percent",
)
HELD_OUT, ATTACKS = "[held-out]", ("rmia, online", "rmia, offline", "lira, online", "lira, offline")
SEEN = (
    *(AUC, FAIRLY, SURE),
    f"{AUC}{HELD_OUT}",
    *(f"{metric}[{attack}]" for metric in (AUC, FAIRLY, SURE) for attack in ATTACKS),
    f"{SURE}_floor",
    f"{FAIRLY}_floor",
    "membership_members",
    "membership_nonmembers",
    "auc",
)


def grids(full: bool) -> dict[str, Values]:
    """Return the grids by part; in each part all cells share their reference models.

    Args:
        full: five seeds of the first part instead of three.
    """
    common: dict[str, Any] = {
        **SKIN,
        "model": "cnn",
        "training": STEPS_OF_PAPER,
        "membership": {"name": "rmia", "references": 16},
        "measure": {"scratch_epochs": 0},
    }
    group = {"name": "cnn", "norm": "group"}
    private = {**STEPS_OF_PAPER, "dp": {"target_epsilon": 8.0}}
    few = {"train_images": 300, "images": 100, "test_images": 300, "public_images": 16}
    # Its images are drawn by the seed, so that each seed has reference models of its own.
    by_heart: dict[str, Any] = {
        "data": few,
        "training": {"epochs": 60},
        "membership": {"name": "rmia", "references": 4},
    }

    def part(defenses: list[Values], seeds: int = 3, **base: Any) -> Values:
        scenario = {**common, **base}
        return {"seeds": list(range(seeds)), "scenario": scenario, "grid": {"defense": defenses}}

    return {
        "usual": part([NONE, LWLRD, DISTILLATION, CAPPED, NO_SIGNAL], seeds=5 if full else 3),
        "by-heart": part([OVERFITTED], **by_heart),
        "private": part([PRIVATE], model=group, training=private),
        "group-norm": part([GROUP_NORM], model=group),
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a release: means over seeds, with their intervals (``<metric> low``, ``high``).

    ``n`` is how many seeds there are.
    """
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    measured = set(table["metric"])
    known = [metric for metric in SEEN if metric in measured]
    for line in summarise(table, ["defense"], known, ["release"]).to_dict("records"):
        row = rows.setdefault(line["defense"], {"defense": line["defense"], "n": line["n"]})
        name = str(line["metric"])
        row |= {name: line["mean"], f"{name} low": line["low"], f"{name} high": line["high"]}
    return pd.DataFrame(rows.values())


STUDY = GridStudy("membership", "Which images a released model was trained on", tabulate)


def main(
    out: Out = Path("runs/membership"),
    full: Full = False,
    data_root: DataRoot = None,
    workers: Workers = None,
    gpus_per_cell: Gpus = 0.0,
    changes: Changes = None,
    only: Only = None,
    again: Again = False,
) -> None:
    """Infer membership from skin networks as they leave, and from two controls.

    Three seeds; --full: five of the network that is not trained privately.
    """
    how = How(
        data_root, workers, gpus_per_cell, changes or (), full=full, only=only or (), again=again
    )
    STUDY.show(grids(full), out, how)


def _share(heading: str, column: str) -> Column:
    return Column(heading, column, format="percent", bounds=(0.0, 1.0), metric=SURE)


def _auc(heading: str, column: str) -> Column:
    return Column(heading, column, bounds=(0.0, 1.0), metric=AUC)


TABLES = {
    "membership": PublishedTable(
        ("membership.csv",),
        {"defense": "release"},
        (
            Column("seeds", "n", format="count", metric="stolen_images"),
            _auc("AUC of membership", AUC),
            _share("found at 1 % FPR", FAIRLY),
            _share("found at 0.1 % FPR", SURE),
            _auc("AUC, held-out images", f"{AUC}{HELD_OUT}"),
            Column("AUC of the task", "auc", metric="auc"),
        ),
    ),
    "membership_attacks": PublishedTable(
        ("membership.csv",),
        {"defense": "release"},
        tuple(_auc(f"AUC, {attack}", f"{AUC}[{attack}]") for attack in ATTACKS)
        + tuple(_share(f"found at 1 % FPR, {attack}", f"{FAIRLY}[{attack}]") for attack in ATTACKS),
    ),
}

STUDIES.register("membership", "which images a released model was trained on (RMIA and LiRA)")(
    Study(main, TABLES, STUDY, grids)
)
