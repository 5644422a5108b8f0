"""Study: what passes through a student's answers, and through a release with a cap in bytes.

A sweep of ``answers-dermamnist.toml``, beside this file; ``fl-sim study answers`` runs it. The
figure has bytes through against AUC, a line a defence, a point a strength of writing.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.base import STUDIES, swept
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.figures import MARKERS
from fl_sim.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "-"
"""Of cells that are no variant: the CNN in a data lake."""

PANELS = {"upload": "AUC of what was handed over", "release": "AUC of what left"}


def table_of(file: str, **further: str) -> PublishedTable:
    """Return the published table of a file of means, with further keys and their headings."""
    return PublishedTable(
        (file,),
        {"attack": "attack", **further, "defense": "defence"},
        (
            Column("AUC handed over", "auc", stage="upload"),
            Column("bytes through", "channel_bytes", stage="release"),
            Column("wrong bits", "bit_error_rate", stage="release"),
            Column("images intact", "images_intact", stage="release"),
            Column("cap in bytes", "cap_bytes", stage="release"),
            Column("AUC", "auc", stage="release"),
        ),
    )


TABLES = {
    "answers": table_of("answers.csv", variant="where"),
    "answers_earlier": table_of("answers_earlier.csv"),
}


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw bytes through a release against AUC, before the defence and after; write a PNG.

    Args:
        path: of the figure.
        table: means by attack, defence, variant, stage and metric.
        title: above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if "variant" in table:  # one network and mode a figure
        table = table[table["variant"] == PLAIN]
    means = table.set_index(["defense", "attack", "stage", "metric"])["mean"]
    written = table[(table["stage"] == "release") & (table["metric"] == "channel_bytes")]
    honest = means.get(("none", "none", "upload", "auc"))
    figure = Figure(figsize=(9, 4.6), dpi=110)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (stage, label) in zip(panels, PANELS.items(), strict=True):
        for number, (defense, rows) in enumerate(written.groupby("defense", sort=False)):
            points = sorted(
                (float(row["mean"]), float(means[defense, row["attack"], stage, "auc"]))
                for row in rows.to_dict("records")
            )
            marker = MARKERS[number % len(MARKERS)]
            panel.plot(*zip(*points, strict=True), marker=marker, markersize=5, label=defense)
        if honest is not None:
            panel.axhline(honest, color="0.4", linestyle="--", linewidth=0.8)
            panel.text(
                0.98,
                honest,
                "trained honestly",
                transform=panel.get_yaxis_transform(),
                fontsize=7,
                ha="right",
                va="bottom",
                color="0.4",
            )
        panel.set_xlabel("bytes through what left")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncol=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.04 + 0.05 * -(-len(texts) // 3), 1, 0.99))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


STUDIES.register("answers", "what passes through a student's answers, and through a cap")(
    swept("answers", "answers-dermamnist", "What passes through answers", TABLES, draw)
)
