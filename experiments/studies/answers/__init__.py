"""Study: what passes through a student's answers, and through a release with a cap in bytes.

A sweep of ``answers-dermamnist.toml``, beside this file; ``fl-sim study answers`` runs it.
"""

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import Column, PublishedTable

TABLES = {
    "answers": PublishedTable(
        ("answers.csv",),
        {"attack": "attack", "defense": "defence"},
        (
            Column("AUC handed over", "auc", stage="upload"),
            Column("bytes through", "channel_bytes", stage="release"),
            Column("wrong bits", "bit_error_rate", stage="release"),
            Column("images intact", "images_intact", stage="release"),
            Column("cap in bytes", "cap_bytes", stage="release"),
            Column("AUC", "auc", stage="release"),
        ),
    ),
}

STUDIES.register("answers", "what passes through a student's answers, and through a cap")(
    swept("answers", "answers-dermamnist", "What passes through answers", TABLES)
)
