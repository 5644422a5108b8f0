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
            Column("AUC of the average", "auc", stage="aggregate"),
        ),
    )
}


PASSED = "identification_correlation chosen"


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw what passes: a bar an attack, a colour a door; nothing of what was withheld."""
    wide = table.pivot_table(
        index=["attack", "variant"], columns=["metric", "stage"], values="mean", sort=False
    )
    before = wide[(PASSED, "upload")]
    after = wide[(PASSED, "door")] if (PASSED, "door") in wide else before * float("nan")
    withheld = wide[("withheld", "door")] > 0 if ("withheld", "door") in wide else before.isna()
    # Without a door what was trained is what leaves.
    passed = after.where(after.notna(), before).mask(withheld & after.isna(), 0.0)
    frame = passed.dropna().rename(PASSED).reset_index()
    return draw_bars(path, frame, "attack", (PASSED,), "variant", title)


STUDIES.register("door", "what passes a hospital's own door before it leaves")(
    swept("door", "door-dermamnist", "What passes a hospital's door", TABLES, draw)
)
