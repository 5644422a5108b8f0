"""The figure of a tuning: what every setting leaked and was worth, and which was chosen."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.tuning.choice import Choices, means_of_settings
from experiments.tuning.plan import UNDEFENDED, Plan
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import column_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def draw_trials(path: Path, plan: Plan, trials: "pd.DataFrame", choices: Choices) -> Path:
    """Draw leakage against utility, a point a setting; write a PNG.

    Numbers are those that the rule sees, see
    :func:`experiments.tuning.choice.means_of_settings`. Squares are first settings, stars the
    chosen ones, the cross is the undefended model, and the dashed line the limit. Where lower
    values leak more, the axis is turned round, so that left is always better.

    Args:
        path: of the figure.
        plan: what was tuned.
        trials: as :func:`experiments.tuning.choice.trials_table` returns it.
        choices: what was chosen.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [choices.leakage, choices.utility]
    points = means_of_settings(plan, trials)
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    panel = figure.subplots()
    undefended = points[points["defense"] == UNDEFENDED]
    _mark(panel, undefended, columns, "x", color="0.3", label="undefended")
    for number, (label, one) in enumerate(choices.chosen.items()):
        own = points[points["defense"] == label].set_index("setting")
        colour = f"C{number % 10}"
        _mark(panel, own, columns, "o", color=colour, alpha=0.5, markersize=4)
        _mark(panel, own.loc[[0]], columns, "s", color=colour, markersize=6)
        star = {"markersize": 15, "markeredgecolor": "black", "markeredgewidth": 0.6}
        _mark(panel, own.loc[[one.setting]], columns, "*", color=colour, label=label, **star)
    if choices.limit is not None:
        panel.axvline(choices.limit, color="0.4", linestyle="--", linewidth=0.8, label="limit")
    panel.set_xlabel(column_label(choices.leakage))
    panel.set_ylabel(f"{column_label(choices.utility)}, on held-out images set aside")
    if plan.leakage.lower_leaks:
        panel.set_xlabel(f"{column_label(choices.leakage)} ({plan.leakage.direction})")
        panel.invert_xaxis()
    panel.set_title(
        f"{plan.name}: {plan.file.budget} settings of every defence (square: its first, star: "
        f"chosen)",
        fontsize=10,
    )
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _mark(
    panel: "Axes", points: "pd.DataFrame", columns: list[str], sign: str, **style: Any
) -> None:
    panel.plot(points[columns[0]], points[columns[1]], sign, **style)
