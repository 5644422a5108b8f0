"""Study: what of a malicious hospital's payload passes its hospital's door, by what the door does.

A sweep of ``door-dermamnist.toml``, beside this file; ``fl-sim study door`` runs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.figures import draw_bars

if TYPE_CHECKING:
    import pandas as pd

TABLES = {
    "door": PublishedTable(
        ("door.csv",),
        {"attack": "attack", "variant": "at the door"},
        (
            Column("found before", "identification_correlation chosen", stage="upload"),
            Column("found after", "identification_correlation chosen", stage="door"),
            Column("intact before", "images_intact", stage="upload"),
            Column("intact after", "images_intact", stage="door"),
            Column("withheld", "withheld", stage="door"),
            Column("seconds a door", "seconds", stage="door"),
            Column("AUC of the average", "auc", stage="aggregate"),
        ),
    )
}


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw what passes: a bar an attack, a colour a door."""
    wide = table.pivot_table(
        index=["attack", "variant", "stage"], columns="metric", values="mean", sort=False
    ).reset_index()
    passed = wide[wide["stage"].isin(["door"])]
    return draw_bars(
        path, passed, "attack", ("identification_correlation chosen",), "variant", title
    )


STUDIES.register("door", "what passes a hospital's own door before it leaves")(
    swept("door", "door-dermamnist", "What passes a hospital's door", TABLES, draw)
)
