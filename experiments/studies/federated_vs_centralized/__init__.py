"""Study: the same images stolen from a data lake, and from one of its hospitals in a federation.

The attacker steals the very same images with the same attack: once his code trains on what all
hospitals brought together but steals only one hospital's images, once that hospital is one of
several whose models are averaged. What leaves, and what is it worth?

Run ``fl-sim study federated_vs_centralized --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    DISTILLATION,
    LWLRD,
    NONE,
    SKIN,
    STUDIES,
    UTILITY,
    GridStudy,
    Values,
    by_seed,
    leak_columns,
    settings_of,
    split_label,
    transpose,
)
from experiments.studies.published_tables import FROM_SCRATCH, RELEASED, PublishedTable
from experiments.tables.figures import draw_bars

if TYPE_CHECKING:
    import pandas as pd

PARTITIONS: dict[str, Values] = {
    "IID": {"scheme": "iid"},
    "Dirichlet 0.3": {"scheme": "dirichlet", "alpha": 0.3},
}
AVERAGES: dict[str, Values] = {
    "FedAvg": {"name": "fedavg"},
    "FedProx": {"name": "fedprox", "proximal_mu": 0.1},
}
LAKE = "data lake"
SMALL: Values = {"data": {"train_images": 2000}, "measure": {"every": 4}}
"""With so few images a hospital takes few steps; the attack takes four on each."""
WITHOUT = "none, without the malicious hospital"
SCRATCH_VIEWS = "from scratch, same views"
"""Labels only; in a federation each round goes on from the release before, as a student does."""
TRUSTED = "trusted training, same views"


def grid(
    model: Any = "cnn",
    attack: Values | None = None,
    hospitals: int = 4,
    rounds: int = 8,
    seeds: Sequence[int] = range(5),
    steps: int = 100,
    held_out: Sequence[int] = (500, 100, 50),
    partitions: Sequence[str] = tuple(PARTITIONS),
    averages: Sequence[str] = tuple(AVERAGES),
    **base: Any,
) -> Values:
    """Return the lake and the federations: as many passes over the images, the same images stolen.

    Beside the defences there are their controls: labels only, with the views and steps of
    distillation, the owner's own training on all images (of a lake), and the federation of the
    honest hospitals alone. What a federation's server does in every round, the owner of a lake does
    at once, with as many steps.

    Args:
        model: of the scenario.
        attack: by default Transpose on 32 images.
        hospitals: that the images are dealt out to; the first one's are stolen.
        rounds: of a federation, one epoch each; the lake is trained for as many epochs.
        seeds: of everything.
        steps: of consistent distillation and its controls in each round.
        held_out: images; with all but the first number only one federation is run, of the last
            partition.
        partitions, averages: names in :data:`PARTITIONS` and :data:`AVERAGES`.
        base: further keys of every scenario.
    """
    stolen = settings_of(transpose(32, memory_steps=4)) if attack is None else attack
    cells: list[Values] = []
    for partition in partitions:
        share = {"hospitals": hospitals, "number": 0, **PARTITIONS[partition]}
        lake = {"mode": "centralized", "training.epochs": rounds, "attacker.hospital": share}
        variant = {"label": f"{LAKE}, {partition}", **lake}
        trusted = {"label": TRUSTED, "name": "trusted_training", "max_steps": rounds * steps}
        defenses = [*_defenses(rounds * steps), trusted]
        cells += [_cell(variant, defense, held_out[0]) for defense in defenses]
        federations: list[Values] = []
        for average in averages:
            federation = {
                "hospitals": hospitals,
                "rounds": rounds,
                "strategy": AVERAGES[average],
                "partition": PARTITIONS[partition],
                "engine": "inprocess",
            }
            federated = {"mode": "federated", "federation": federation}
            variant = {"label": f"{average}, {partition}", **federated}
            federations.append(variant)
            cells += [_cell(variant, defense, held_out[0]) for defense in _defenses(steps)]
            cells.append(_honest(variant, held_out[0]))
    for images in held_out[1:]:
        cells += [_cell(federations[0], defense, images) for defense in _defenses(steps)[1:]]
    scenario = {**SKIN, "model": model, "attack": stolen, **base}
    return {"seeds": list(seeds), "scenario": scenario, "cells": cells}


def _defenses(steps: int) -> list[Values]:
    distillation = {**DISTILLATION, "steps": steps}
    return [NONE, LWLRD, distillation, {**distillation, "label": SCRATCH_VIEWS, "labels": 1.0}]


def _cell(variant: Values, defense: Values, images: int) -> Values:
    return {"variant": variant, "defense": defense, "data.images": images}


def _honest(variant: Values, images: int) -> Values:
    """Return the same federation without the malicious hospital, as a cell."""
    alone = {**variant["federation"], "malicious": [], "absent": [0]}
    defense = {"label": WITHOUT, "value": "none"}
    return _cell({**variant, "federation": alone, "attack": "none"}, defense, images)


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a place, partition, defence, seed and stage; of a federation the last round."""
    frame = by_seed(table, (*leak_columns(), *UTILITY))
    return split_label(frame, "variant", ("where", "partition"))


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw what leaves: a bar a place and partition, a colour a defence."""
    released = table[table["stage"] == "release"]
    released = released[released["data.images"] == released["data.images"].iloc[0]]
    frame = released.assign(place=released["where"] + ", " + released["partition"])
    metrics = ("ssim strongest", "identification_correlation strongest", "auc")
    return draw_bars(path, frame, "place", metrics, "defense", title)


STUDY = GridStudy(
    "federated_vs_centralized",
    "The same images stolen from a data lake and from one hospital",
    tabulate,
    draw,
)


def cells(full: bool) -> Values:
    """Steal the same skin images from a data lake and from one hospital of a federation."""
    if full:
        attack = settings_of(transpose(64))
        return grid("resnet18", attack, steps=600, held_out=(1003, 250, 50))
    return grid(**SMALL)


EARLIER = PublishedTable(
    ("federated_earlier.csv",),
    {"where": "where", "partition": "images", "defense": "defence"},
    (*RELEASED, FROM_SCRATCH),
    {"stage": "release"},
)
"""Three seeds without the controls, with 100 steps of distillation also in the lake."""

TABLES = {
    "federated_earlier": EARLIER,
    "federated_vs_centralized": PublishedTable(
        ("federated_vs_centralized.csv",),
        {"where": "where", "partition": "images", "data.images": "held out", "defense": "defence"},
        (*RELEASED, FROM_SCRATCH),
        {"stage": "release"},
    ),
}

STUDIES.register(
    "federated_vs_centralized", "the same images stolen from a data lake and from a federation"
)(STUDY.study(cells, TABLES))
