"""Study: the best defences on other data and other attacks.

A sweep of ``confirm-defenses.toml``, beside this file; ``fl-sim study confirm_defenses`` runs it.
"""

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import RELEASED, Column, PublishedTable

TABLES = {
    "confirm_defenses": PublishedTable(
        ("confirm_defenses.csv",),
        {"variant": "data, attack", "defense": "defence"},
        (*RELEASED, Column("AUC from scratch", "auc_floor_scratch")),
        {"stage": "release"},
    ),
}

STUDIES.register("confirm_defenses", "the best defences on other data and other attacks")(
    swept(
        "confirm_defenses",
        "confirm-defenses",
        "The best defences on other data and other attacks",
        TABLES,
    )
)
