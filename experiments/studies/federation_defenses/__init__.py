"""Study: defences before every broadcast of a federation.

A sweep of ``federation-defenses.toml``, beside this file; ``fl-sim study federation_defenses``
runs it.
"""

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import FOUND, Column, PublishedTable

TABLES = {
    "federation_defenses": PublishedTable(
        ("federation_defenses.csv",),
        {"variant": "defence"},
        (
            Column("SSIM, best", "ssim strongest"),
            Column("found", FOUND),
            Column("AUC", "auc"),
        ),
        {"stage": "release"},
    ),
}

STUDIES.register("federation_defenses", "defences before every broadcast of a federation")(
    swept(
        "federation_defenses",
        "federation-defenses",
        "Defences before every broadcast of a federation",
        TABLES,
    )
)
