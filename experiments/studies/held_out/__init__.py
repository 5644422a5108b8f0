"""Study: what each defence is worth with fewer held-out images, against training on these alone.

A defence cleans the model on images that its owner holds out. With few of them it leaves more of
what is hidden, or less of what is useful; with many, the owner could train on these alone.

Run ``fl-sim study held_out --help``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.base import (
    ALONE,
    ANSWERS,
    DISTILLATION,
    FISHER_NOISE,
    LWLRD,
    NONE,
    SCRATCH,
    SKIN,
    STEPS_OF_PAPER,
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
from experiments.tables.figures import draw_lines

if TYPE_CHECKING:
    import pandas as pd

SIZES = (50, 100, 250, 500, 1003)
DEFENSES = (NONE, LWLRD, FISHER_NOISE, DISTILLATION, ANSWERS, ALONE)


def grid(
    model: Any = "cnn",
    images: int = 64,
    seeds: Sequence[int] = (0, 1, 2),
    sizes: Sequence[int] = SIZES,
    defenses: Sequence[Values] = DEFENSES,
    **base: Any,
) -> Values:
    """Return every defence at every size; all clean the same attacked model of a seed.

    Args:
        model: of the scenario.
        images: stolen by Transpose.
        seeds: one attacked model each.
        sizes: of the held-out set, at most the validation split.
        defenses: values of the axis.
        base: further keys of every scenario.
    """
    attack = settings_of(transpose(images))
    common = {**SKIN, "model": model, "attack": attack, "training": STEPS_OF_PAPER}
    return {
        "seeds": list(seeds),
        "scenario": {**common, **base},
        "grid": {"defense": list(defenses), "data.images": list(sizes)},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a defence, number of held-out images and seed, at release."""
    frame = by_seed(table, (*leak_columns(), *UTILITY, "seconds"), ["release"])
    frame = frame.rename(columns={"data.images": "held-out images"})
    frame["held-out images"] = frame["held-out images"].astype(int)
    return frame


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw AUC and identification by size; training from scratch is a line of the first panel."""
    import pandas as pd

    x, found = "held-out images", "identification_correlation strongest"
    scratch = table[[x, "seed", SCRATCH]].drop_duplicates().rename(columns={SCRATCH: "auc"})
    frame = pd.concat([table, scratch.assign(defense="held-out images alone")])
    return draw_lines(path, frame, x, ("auc", found), "defense", title, log_x=True)


STUDY = GridStudy("held_out", "Defences with fewer held-out images", tabulate, draw)


def cells(full: bool) -> Values:
    """Memorise skin images and clean the model with fewer and fewer held-out images."""
    return grid("resnet18", seeds=range(5)) if full else grid()


TABLES = {
    "held_out": PublishedTable(
        ("held_out.csv",),
        {"defense": "defence", "held-out images": "held-out images"},
        (*RELEASED, FROM_SCRATCH),
    ),
}

STUDIES.register("held_out", "what each defence is worth with fewer held-out images")(
    STUDY.study(cells, TABLES)
)
