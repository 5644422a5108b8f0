"""The long table's columns, from its own list."""

from experiments.handbook.components import path_of
from experiments.handbook.markup import definitions
from fl_sim.results import COLUMNS, STAGES
from fl_sim.words import NO_EXTRACTION, RAW, STRONGEST

MEANINGS = {
    "scenario": "name of the cell: what differs from the defaults, and a checksum",
    "seed": "everything random follows from it",
    "mode": "centralized (a data lake) or federated",
    "dataset": "the data set's name, or the file's",
    "model": "the network's name",
    "attack": "the attack's name; none",
    "defense": "the defence's name; none",
    "aggregator": "the strategy; empty in a data lake",
    "clients": "how many hospitals",
    "round": "from 1 on in a federation; 0 in a data lake",
    "stage": f"where the model was caught: {', '.join(STAGES)}",
    "extraction": f"{RAW}, a restoration's name, the one an attacker would choose, or {STRONGEST}, "
    f"picked with the true images; {NO_EXTRACTION} where nothing was extracted",
    "metric": "what was measured",
    "value": "the number",
}
"""What each column holds."""


def column_page() -> str:
    """Return the page on the long table that every run writes."""
    metrics = path_of("metric").rpartition("/")[2]
    about = (
        "Every run writes one long table, a row a number, as `results.csv` and `results.parquet`; "
        f"summaries, figures and reports are computed from it. What a metric means is said under "
        f"[Metrics]({metrics})."
    )
    terms = definitions((f"<code>{name}</code>", MEANINGS[name]) for name in COLUMNS)
    return f"# Columns of the long table\n\n{about}\n\n{terms}\n"
