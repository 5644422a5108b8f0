"""Figures and tables of study scripts: lines over a setting, a panel a metric."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_sim.artifact import write_atomically

if TYPE_CHECKING:
    import pandas as pd

MARKERS = "osD^vPX*"


def draw_lines(
    path: Path,
    frame: "pd.DataFrame",
    x: str,
    metrics: Sequence[str],
    series: str,
    title: str,
    labels: dict[str, str] | None = None,
    log_x: bool = False,
) -> Path:
    """Draw one panel a metric, one line a series, with the range over seeds; write a PNG.

    Args:
        path: of the figure.
        frame: a row a measurement, with the columns ``x``, ``series`` and the metrics.
        x: column of the horizontal axis; strings stand side by side in the order of the frame.
        metrics: columns of the panels.
        series: column that tells the lines apart.
        title: above the panels.
        labels: names of columns, for people.
        log_x: whether the horizontal axis is logarithmic; zero then stands at its left end.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = labels or {}
    figure = Figure(figsize=(4.2 * len(metrics), 3.6), dpi=130)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for number, (name, rows) in enumerate(frame.groupby(series, sort=False)):
            values = rows.dropna(subset=[metric]).groupby(x, sort=False)[metric]
            if len(values) == 0:
                continue
            mean = values.mean()
            positions = mean.index.to_numpy()
            line = panel.plot(
                positions, mean, marker=MARKERS[number % len(MARKERS)], markersize=4,
                linewidth=1.2, label=str(name),
            )  # fmt: skip
            panel.fill_between(
                positions, values.min(), values.max(), alpha=0.15, color=line[0].get_color()
            )
        if log_x:
            smallest = frame.loc[frame[x] > 0, x].min()
            panel.set_xscale("symlog", linthresh=float(smallest))
        panel.set_xlabel(names.get(x, x))
        panel.set_ylabel(names.get(metric, metric))
        panel.grid(alpha=0.3)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncol=min(4, len(texts)), fontsize=8)
    figure.suptitle(title, fontsize=10)
    rows_of_legend = -(-len(texts) // 4)
    figure.tight_layout(rect=(0, 0.03 + 0.06 * rows_of_legend, 1, 0.99))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def write_table(path: Path, frame: "pd.DataFrame") -> Path:
    """Write a study's table as CSV, whole or not at all. Returns ``path``."""
    return write_atomically(path, frame.to_csv(index=False, lineterminator="\n").encode())


def numbers(frame: "pd.DataFrame", stage: str, metrics: Sequence[str]) -> dict[str, float]:
    """Pick metrics of one stage's last round from a run's long table.

    The raw extraction's value where a metric has several; ``nan`` where it was not measured.
    """
    rows = frame[frame["stage"] == stage]
    rows = rows[rows["round"] == rows["round"].max()]
    rows = rows[rows["extraction"].isin(["raw", "-"])]
    found = dict(zip(rows["metric"], rows["value"], strict=True))
    return {metric: float(found.get(metric, float("nan"))) for metric in metrics}
