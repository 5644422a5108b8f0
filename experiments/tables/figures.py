"""Figures and tables of study scripts: lines over a setting, a panel a metric."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.tables.summary import to_csv
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import column_label

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
        labels: names of columns, for people; of metrics by default their own.
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
                positions,
                mean,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                linewidth=1.2,
                label=str(name),
            )
            panel.fill_between(
                positions, values.min(), values.max(), alpha=0.15, color=line[0].get_color()
            )
        if log_x:
            smallest = frame.loc[frame[x] > 0, x].min()
            panel.set_xscale("symlog", linthresh=float(smallest))
        panel.set_xlabel(names.get(x, x))
        panel.set_ylabel(names.get(metric, column_label(metric)))
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
    return write_atomically(path, to_csv(frame).encode())


def draw_bars(
    path: Path,
    frame: "pd.DataFrame",
    category: str,
    metrics: Sequence[str],
    series: str,
    title: str,
    labels: dict[str, str] | None = None,
) -> Path:
    """Draw one panel a metric, bars by category and series; write a PNG.

    Args:
        path: of the figure.
        frame: a row a measurement, with the columns ``category``, ``series`` and the metrics. The
            mean over rows is drawn, with their range; or with ``"<metric> low"`` and ``"<metric>
            high"``, where the table has an interval.
        category: column of the vertical axis, in the order of the frame.
        metrics: columns of the panels.
        series: column that tells the bars of a category apart.
        title: above the panels.
        labels: names of columns, for people; of metrics by default their own.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(frame[category]))
    kinds = list(dict.fromkeys(frame[series]))
    height = 1.6 + 0.16 * len(categories) * (len(kinds) + 1)
    figure = Figure(figsize=(2.0 + 3.4 * len(metrics), height), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for number, kind in enumerate(kinds):
            rows = frame[frame[series] == kind].groupby(category, sort=False)
            mean = rows[metric].mean().reindex(categories)
            ends = [f"{metric} low", f"{metric} high"]
            if not set(ends) <= set(frame.columns):
                ends = [metric, metric]
            low = rows[ends[0]].min().reindex(categories)
            high = rows[ends[1]].max().reindex(categories)
            places = [place + number / (len(kinds) + 1) for place in range(len(categories))]
            panel.barh(
                places,
                mean,
                height=1 / (len(kinds) + 1),
                label=str(kind),
                alpha=0.85,
                xerr=[(mean - low).fillna(0).clip(lower=0), (high - mean).fillna(0).clip(lower=0)],
                error_kw={"elinewidth": 0.8},
            )
        panel.set_xlabel((labels or {}).get(metric, column_label(metric)))
        panel.grid(axis="x", alpha=0.3)
    middle = (len(kinds) - 1) / (len(kinds) + 1) / 2
    panels[0].set_yticks([place + middle for place in range(len(categories))], categories)
    panels[0].invert_yaxis()
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncol=min(3, len(texts)), fontsize=8)
    figure.suptitle(title, fontsize=10)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())
