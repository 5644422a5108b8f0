"""Study: attacks in training with differential privacy.

A sweep of ``dp-dermamnist.toml``, beside this file; ``fl-sim study dp_training`` runs it.
"""

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import FOUND, Column, PublishedTable

TABLES = {
    "dp_training": PublishedTable(
        ("dp_training.csv",),
        {"training": "training", "attack": "attack"},
        (
            Column("epsilon", "dp_epsilon", stage="upload"),
            Column("SSIM, best", "ssim strongest", stage="release"),
            Column("found by correlation", FOUND, stage="release"),
            Column("intact", "images_intact", stage="release"),
            Column("AUC", "auc", stage="release"),
        ),
    ),
}

STUDIES.register("dp_training", "attacks in training with differential privacy")(
    swept("dp_training", "dp-dermamnist", "Attacks in training with differential privacy", TABLES)
)
