"""Study: does it matter for LWLRD how a network's layers are connected?

Decay over layers presumes an order. A chain (VGG11) has one, residual networks nearly, a vision
transformer by block; in a dense block every layer feeds all later ones. How layers are counted
(blocks, tensors, and by depth in the graph where that is offered) decides every rate in between.

Run ``fl-sim study architectures --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from experiments.studies.base import (
    NONE,
    SKIN,
    STUDIES,
    UTILITY,
    GridStudy,
    Values,
    by_seed,
    leak_columns,
    settings_of,
    transpose,
)
from experiments.studies.published_tables import FROM_SCRATCH, RELEASED, PublishedTable
from experiments.tables.figures import draw_bars
from fl_sim.models.graph import Grouping

if TYPE_CHECKING:
    import pandas as pd

MODELS: tuple[Values, ...] = (
    {"label": "ResNet18", "name": "resnet18"},
    {"label": "DenseNet121", "name": "densenet121", "stem": "small"},
    {"label": "VGG11", "name": "vgg11", "stem": "small"},
    {"label": "ViT", "name": "vit"},
)
"""On 28 pixels DenseNet121 and VGG11 need the small stem."""
COUNTED = ("block", "tensor", "depth")
SMALL: Values = {
    "data": {"train_images": 1500, "images": 250, "test_images": 1000},
    "training": {"epochs": 5, "batch_size": 32},
}


def defenses(distillation: Values | None = None) -> list[Values]:
    """Return LWLRD by each way of counting layers that there is, and consistent distillation."""
    by = [layers for layers in COUNTED if layers in get_args(Grouping)]
    return [
        NONE,
        *({"label": f"LWLRD by {layers}", "name": "lwlrd", "layers": layers} for layers in by),
        {
            "label": "consistent distillation",
            "name": "consistent_distillation",
            **(distillation or {}),
        },
    ]


def grid(
    models: Sequence[Any] = MODELS,
    attack: Values | None = None,
    seeds: Sequence[int] = (0,),
    distillation: Values | None = None,
    **base: Any,
) -> Values:
    """Return every network and defence; ``base`` has further keys of every scenario.

    Args:
        models: values of the axis.
        attack: by default Transpose on 64 images.
        seeds: of everything.
        distillation: settings of consistent distillation.
        base: further keys of every scenario.
    """
    stolen = settings_of(transpose(64)) if attack is None else attack
    return {
        "seeds": list(seeds),
        "scenario": {**SKIN, "attack": stolen, **base},
        "grid": {"model": list(models), "defense": defenses(distillation)},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a network, defence and seed, at release."""
    return by_seed(table, (*leak_columns(), *UTILITY, "seconds"), ["release"])


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw a bar a network, a colour a defence."""
    metrics = ("ssim strongest", "identification_correlation strongest", "auc")
    return draw_bars(path, table, "model", metrics, "defense", title)


STUDY = GridStudy("architectures", "Networks, and how LWLRD counts their layers", tabulate, draw)


def cells(full: bool) -> Values:
    """Memorise skin images in four networks and clean each in several ways."""
    if full:
        return grid(seeds=range(5), training={"epochs": 6.5})
    few = settings_of(transpose(16, batch_size=16))
    return grid(attack=few, distillation={"steps": 150, "batch_size": 32}, **SMALL)


TABLES = {
    "architectures": PublishedTable(
        ("architectures.csv",), {"model": "model", "defense": "defence"}, (*RELEASED, FROM_SCRATCH)
    ),
}

STUDIES.register("architectures", "does it matter for LWLRD how a network's layers are connected")(
    STUDY.study(cells, TABLES)
)
