"""Study: how many images a model holds, before and after LWLRD.

Transpose trades their number against their quality and the model's worth; codes in the low bits are
exact up to the carrier's capacity and cost nothing.

Run ``fl-sim study capacity --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    LWLRD,
    NONE,
    SKIN,
    STEPS_OF_PAPER,
    STUDIES,
    UTILITY,
    GridStudy,
    Values,
    by_seed,
    dec,
    leak_columns,
    split_label,
    transpose,
)
from experiments.studies.published_tables import RELEASED, Column, PublishedTable
from experiments.tables.figures import draw_lines

if TYPE_CHECKING:
    import pandas as pd

MEMORISED = (16, 32, 64, 128, 256, 512)
HIDDEN: tuple[int | str, ...] = (16, 64, 256, "fit")


def grid(
    models: Sequence[Any] = ("cnn",),
    memorised: Sequence[int] = MEMORISED,
    hidden: Sequence[int | str] = HIDDEN,
    seeds: Sequence[int] = (0, 1, 2),
    **base: Any,
) -> Values:
    """Return every number of images, undefended and after LWLRD.

    Args:
        models: values of the axis.
        memorised: images of Transpose.
        hidden: images of DEC; ``"fit"`` for as many as the carrier holds.
        seeds: of everything.
        base: further keys of every scenario.
    """
    attacks = [*(transpose(count) for count in memorised), *(dec(count) for count in hidden)]
    return {
        "seeds": list(seeds),
        "scenario": {**SKIN, "training": STEPS_OF_PAPER, **base},
        "grid": {"model": list(models), "attack": attacks, "defense": [NONE, LWLRD]},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a model, attack, number of images, defence, seed and stage.

    ``images`` are those that were hidden, ``asked`` is what the attacker asked for.
    """
    written = "images_written"
    wanted = (written, *leak_columns(), "images_intact", "images_lost", *UTILITY)
    frame = split_label(by_seed(table, wanted), "attack", ("attack", "asked"))
    keys = ["model", "attack", "asked", "defense", "seed"]
    filled = frame.groupby(keys, sort=False)[written].transform("max")
    asked = frame["asked"].where(frame["asked"] != "fit").astype(float)
    frame.insert(list(frame.columns).index("asked") + 1, "images", filled.fillna(asked))
    frame["images"] = frame["images"].astype(int)
    return frame.drop(columns=written)


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw leak and AUC against the number of images, a line a model, attack and defence."""
    released = table[table["stage"] == "release"]
    cleaned = released["defense"].map(lambda name: "" if name == "none" else f", {name}")
    frame = released.assign(series=released["model"] + ", " + released["attack"] + cleaned)
    # "fit" is not the same number in every seed; it is drawn at its mean.
    places = frame.groupby(["series", "asked"])["images"].transform("mean")
    frame = frame.assign(images=places).sort_values("images", kind="stable")
    metrics = ("ssim strongest", "identification_correlation strongest", "auc")
    return draw_lines(path, frame, "images", metrics, "series", title, log_x=True)


STUDY = GridStudy("capacity", "How many images a model holds", tabulate, draw)


def cells(full: bool) -> Values:
    """Hide more and more skin images in a model, and clean it with LWLRD."""
    return grid(("cnn", "resnet18"), seeds=range(5)) if full else grid()


TABLES = {
    "capacity": PublishedTable(
        ("capacity.csv",),
        {"model": "model", "attack": "attack", "asked": "images", "defense": "defence"},
        (
            Column("hidden", "images", "count"),
            *RELEASED,
            Column("intact", "images_intact"),
        ),
        {"stage": "release"},
    ),
}

STUDIES.register("capacity", "how many images a model holds, before and after LWLRD")(
    STUDY.study(cells, TABLES)
)
