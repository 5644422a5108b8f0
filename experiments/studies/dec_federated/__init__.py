"""Study: what of a payload survives a federation? DEC's carriers at upload, aggregate and release.

A malicious hospital writes its payload into each upload, with and without boosting its update, and
the server averages. The table has images recovered intact, damaged and lost and the carrier's error
in each round and stage; the figure shows them against rounds.

Run ``fl-sim study dec_federated --help``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import STUDIES, GridStudy, Values
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.figures import draw_lines
from experiments.tables.summary import LABEL
from fl_sim.results import STAGES

if TYPE_CHECKING:
    import pandas as pd

METRICS = (
    "images_intact",
    "images_damaged",
    "images_lost",
    "bit_error_rate",
    "value_error",
    "psnr",
    "ssim",
    "identification_correlation",
    "auc",
)
LABELS = {"point": "round and stage"}


def attacks(codec: Values, external: Any, images: int) -> dict[str, Values]:
    """Return the attacks that are compared, by name."""
    common = {"name": "dec", "codec": codec, "external": external, "images": images}
    latents = {**common, "contents": "latents"}
    return {
        "Z in low bits": {**common, "carrier": "lsb"},
        "Z as entries": {**common, "carrier": "entries"},
        "y in place of weights": {**latents, "carrier": "weights"},
        "y in frozen weights": {**latents, "carrier": "frozen"},
    }


def grid(
    compared: Mapping[str, Values],
    federation: Values,
    boosts: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    **base: Any,
) -> Values:
    """Return every attack and boost.

    Args:
        compared: attacks by name.
        federation: the table ``[federation]``.
        boosts: factors on the malicious update.
        seeds: of everything.
        base: further keys of every scenario.
    """
    variants = [
        {
            "label": name if boost == 1 else f"{name}, boosted {boost:g} times",
            "attack": attack,
            "federation.boost": boost,
        }
        for name, attack in compared.items()
        for boost in boosts
    ]
    scenario = {
        "mode": "federated",
        "federation": federation,
        "measure": {"scratch_epochs": 0},
        **base,
    }
    return {"seeds": list(seeds), "scenario": scenario, "grid": {"variant": variants}}


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row an attack and boost (``series``), seed, round and stage; raw extraction."""
    rows = table[table["extraction"].isin(["raw", "-"]) & table["metric"].isin(METRICS)]
    rows = rows[rows["stage"].isin(STAGES)].rename(columns={f"{LABEL}variant": "series"})
    keys = ["series", "seed", "round", "stage"]
    frame = rows.pivot_table(index=keys, columns="metric", values="value").reset_index()
    places = {name: place for place, name in enumerate(rows["series"].unique())}
    frame = frame.assign(
        place=frame["series"].map(places), step=frame["stage"].map(STAGES.index)
    ).sort_values(["place", "seed", "round", "step"])
    return frame[[*keys, *(m for m in METRICS if m in frame)]].reset_index(drop=True)


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw what arrives at each stage of each round, a line a series."""
    points = [f"{n} {s[:3]}" for n, s in zip(table["round"], table["stage"], strict=True)]
    frame = table.assign(point=points)
    metrics = ("images_intact", "identification_correlation", "auc")
    return draw_lines(path, frame, "point", metrics, "series", title, LABELS)


STUDY = GridStudy("dec_federated", "What a federation lets through", tabulate, draw)


def cells(full: bool) -> Values:
    """Steal chest X-rays from one of four hospitals, with a codec from another collection.

    --full: eight rounds, and five seeds.
    """
    federation = {
        "hospitals": 4,
        "rounds": 8 if full else 3,
        "partition": {"scheme": "dirichlet", "alpha": 0.3},
    }
    compared = attacks({"name": "factorized"}, "chestmnist_nih1000.npz", 64)
    seeds = range(5) if full else (0,)
    base = {"dataset": "pneumoniamnist", "model": "resnet18", "defense": "lwlrd"}
    return grid(compared, federation, (1.0, 4.0), seeds, **base)


TABLES = {
    "dec_federated": PublishedTable(
        ("dec_federated.csv",),
        {"series": "payload"},
        (
            Column("intact at upload", "images_intact", stage="upload"),
            Column("intact at release", "images_intact", stage="release"),
            Column("damaged", "images_damaged", stage="release"),
            Column("lost", "images_lost", stage="release"),
            Column("bits wrong", "bit_error_rate", stage="release"),
            Column("SSIM, raw", "ssim", stage="release"),
            Column("found by correlation", "identification_correlation", stage="release"),
        ),
        names={
            "Z in low bits": "codes in the low bits",
            "Z as entries": "codes as further entries",
            "y in place of weights": "latents in place of late weights",
            "y in frozen weights": "latents in frozen early weights",
        },
    ),
}

STUDIES.register("dec_federated", "what of a payload survives a federation")(
    STUDY.study(cells, TABLES)
)
