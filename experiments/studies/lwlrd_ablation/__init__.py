"""Study: which part of LWLRD does what. One factor at a time around its published setting.

One attacked model a seed; every variant cleans that same model. Beside each stands the AUC of the
network trained from scratch on the held-out images: a variant below it has protected nothing.

Run ``fl-sim study lwlrd_ablation --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from experiments.studies.base import (
    NONE,
    SKIN,
    STEPS_OF_PAPER,
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
from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.lwlrd import LwlrdSettings
from fl_sim.models.graph import Grouping

if TYPE_CHECKING:
    import pandas as pd

HIGHS = (3e-3, 3e-2, 1e-1)
LOWS = (1e-5, 1e-3)
EPOCHS = (1, 2, 10, 20)
BATCHES = (8, 32, 64)


def variants() -> list[Values]:
    """Return LWLRD, its variants, each with one setting changed, and its controls.

    The controls are other decays over the same layers, where they are registered as defences.
    """
    default = LwlrdSettings()
    rates = [(high, default.low) for high in HIGHS] + [(default.high, low) for low in LOWS]
    changed: list[tuple[str, str, Values]] = [
        ("rates", f"{high:g} to {low:g}", {"high": high, "low": low}) for high, low in rates
    ]
    changed += [("epochs", f"{epochs}", {"epochs": epochs}) for epochs in EPOCHS]
    changed += [("images a step", f"{size}", {"batch_size": size}) for size in BATCHES]
    adam: Values = {"optimizer": "adam"}
    changed.append(("optimizer", "Adam, same rates", adam))
    changed.append(("optimizer", "Adam, 0.001 to 1e-05", {**adam, "high": 1e-3, "low": 1e-5}))
    changed.append(("optimizer", "SGD without momentum", {"momentum": 0.0}))
    others = [grouping for grouping in get_args(Grouping) if grouping != default.layers]
    changed += [("layers", f"by {grouping}", {"layers": grouping}) for grouping in others]
    changed.append(("batch-norm statistics", "frozen", {"batch_norm": "running"}))
    controls = {"lwlrd_reversed": "reversed", "lwlrd_uniform": "uniform, geometric mean"}
    known = {entry.name for entry in DEFENSES.entries()}
    return [
        {"label": "default", "name": "lwlrd"},
        *({"label": f"{f}, {value}", "name": "lwlrd", **s} for f, value, s in changed),
        *({"label": f"decay, {what}", "name": n} for n, what in controls.items() if n in known),
    ]


def grid(
    model: Any = "resnet18",
    images: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    defenses: Sequence[Values] | None = None,
    **base: Any,
) -> Values:
    """Return the undefended model and every variant; ``base`` has further keys of every scenario.

    Args:
        model: of the scenario.
        images: stolen by Transpose.
        seeds: one attacked model each.
        defenses: by default :func:`variants`.
        base: further keys of every scenario.
    """
    attack = settings_of(transpose(images))
    common = {**SKIN, "model": model, "attack": attack, "training": STEPS_OF_PAPER}
    chosen = variants() if defenses is None else defenses
    return {
        "seeds": list(seeds),
        "scenario": {**common, **base},
        "grid": {"defense": [NONE, *chosen]},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a factor, value and seed, at release."""
    frame = by_seed(table, (*leak_columns(), *UTILITY, "seconds"), ["release"])
    return split_label(frame, "defense", ("factor", "value"))


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw a bar a variant."""
    frame = table.assign(
        variant=(table["factor"] + ": " + table["value"]).str.removesuffix(": "), defence="LWLRD"
    )
    metrics = ("ssim strongest", "identification_correlation strongest", "auc")
    return draw_bars(path, frame, "variant", metrics, "defence", title)


STUDY = GridStudy("lwlrd_ablation", "LWLRD, one factor at a time", tabulate, draw)


def cells(full: bool) -> Values:
    """Memorise skin images in a ResNet18 and clean it with every variant of LWLRD."""
    return grid(seeds=range(10)) if full else grid()


_FACTORS = {"factor": "what is changed", "value": "to"}

TABLES = {
    "lwlrd_ablation": PublishedTable(("lwlrd_ablation.csv",), _FACTORS, (*RELEASED, FROM_SCRATCH)),
}

STUDIES.register("lwlrd_ablation", "which part of LWLRD does what, one factor at a time")(
    STUDY.study(cells, TABLES)
)
