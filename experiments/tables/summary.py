"""Summary tables of a sweep: from its long table to means with intervals, for people and papers."""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fl_sim.cells import each_text, guarded
from fl_sim.errors import FlSimError, did_you_mean, printable
from fl_sim.metrics.intervals import Beside, metric_interval
from fl_sim.metrics.vocabulary import (
    HIGHER_LEAKS,
    LOWER_BETTER,
    column_order,
    columns_shown,
    metric_of,
)
from fl_sim.results import STAGES
from fl_sim.statistics import MARGIN, Interval, Method, adjusted, compare_treatments
from fl_sim.words import NO_EXTRACTION, SUMMED_UP

if TYPE_CHECKING:
    import pandas as pd

LABEL = "grid."
"""Before the names of label columns in a sweep's long table, which has columns of its own."""
CELL = "cell"
VARIANT = "variant"
"""The axis of what a grid varies together."""


def labels_of(table: "pd.DataFrame") -> list[str]:
    """Return the names of a sweep's axes, as its long table has them."""
    return [str(c).removeprefix(LABEL) for c in table.columns if str(c).startswith(LABEL)]


def wide(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a cell and stage: labels, ``seed``, ``stage``, and a column a metric.

    A metric of extractions has the columns ``"<metric> raw"``, ``"<metric> chosen"`` (of what an
    attacker would choose) and ``"<metric> strongest"`` (picked with the true images). Of a
    federation it is the last measured round; single attackers' rows are left out.

    Args:
        table: a sweep's long table.
    """
    rows = table[
        table["stage"].isin(STAGES) & table["extraction"].isin([NO_EXTRACTION, *SUMMED_UP])
    ]
    last = rows.groupby([CELL, "stage"])["round"].transform("max")
    rows = rows[rows["round"] == last]
    suffix = (" " + rows["extraction"]).where(rows["extraction"] != NO_EXTRACTION, "")
    rows = rows.assign(column=rows["metric"] + suffix)
    labels = [LABEL + name for name in labels_of(table)]
    result = rows.pivot(index=[CELL, *labels, "seed", "stage"], columns="column", values="value")
    result.columns.name = None
    result = result.reset_index().rename(columns={c: c.removeprefix(LABEL) for c in labels})
    # The table's own order, not the alphabet's.
    cells = {name: place for place, name in enumerate(table[CELL].unique())}
    order = result[CELL].map(cells) * len(STAGES) + result["stage"].map(STAGES.index)
    return result.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def summarise(
    table: "pd.DataFrame",
    rows: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    stages: Sequence[str] | None = None,
    level: float = 0.95,
    method: Method = "t",
) -> "pd.DataFrame":
    """Return means over seeds and their confidence intervals, a row a group, stage and metric.

    Args:
        table: a sweep's long table.
        rows: labels that tell groups apart; by default all. Without one of the sweep's axes a mean
            runs over that axis, too.
        metrics: names as in :func:`wide`; by default those declared for summaries
            (:mod:`fl_sim.metrics.vocabulary`) that there are.
        stages: by default all.
        level: of confidence.
        method: ``"t"`` or ``"bootstrap"``; see :func:`fl_sim.metrics.intervals.metric_interval`.

    Returns:
        The columns ``rows``, ``stage``, ``metric``, ``n``, ``missing``, ``mean``, ``low`` and
        ``high``.

    Raises:
        FlSimError: if a label or metric is unknown.
    """
    import pandas as pd

    frame = wide(table)
    groups = [*(labels_of(table) if rows is None else rows)]
    shown = [*(columns_shown("summary", frame) if metrics is None else metrics)]
    for name in groups:
        _known(name, [*labels_of(table), "seed"], "label")
    for name in shown:
        _known(name, [c for c in frame.columns if c not in (CELL, "stage", *groups)], "metric")
    if stages is not None:
        frame = frame[frame["stage"].isin(stages)]
    lines = []
    for names, group in frame.groupby([*groups, "stage"], sort=False):
        for metric in shown:
            interval = metric_interval(metric, group[metric], _beside(group), level, method)
            if interval.n:
                keys = dict(zip([*groups, "stage"], names, strict=True))
                lines.append({**keys, "metric": metric, **vars(interval)})
    columns = [*groups, "stage", "metric", "n", "missing", "mean", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def compare(
    table: "pd.DataFrame",
    treatment: str,
    baseline: str,
    metric: str,
    stage: str = "release",
    level: float = 0.95,
    planned: Sequence[str] | None = None,
    margin: float = MARGIN,
) -> "pd.DataFrame":
    """Compare the labels of one axis in pairs: same seed, same labels on all other axes.

    For example ``compare(table, "defense", "none", "ssim strongest")``: what each defence changes
    on the same attacked models. P-values are corrected over all rows of the answer.

    Args:
        table: a sweep's long table.
        treatment: the axis.
        baseline: its label that the others are compared with.
        metric: a name as in :func:`wide`.
        stage: where it was measured.
        level: of confidence.
        planned: labels of the axis whose tests were planned beforehand, and count in corrections;
            by default all.
        margin: within which a difference is none; see :func:`fl_sim.statistics.verdict`. Where
            more leaks, ``"worse"`` is said.

    Returns:
        A row a group of the other axes' labels and a label of this one; see
        :func:`fl_sim.statistics.compare_treatments`.

    Raises:
        FlSimError: if a name is unknown, or the cells do not pair.
    """
    import pandas as pd

    frame = wide(table)
    frame = frame[frame["stage"] == stage]
    axes = labels_of(table)
    _known(treatment, axes, "label")
    _known(metric, [str(c) for c in frame.columns], "metric")
    others = [axis for axis in axes if axis != treatment]
    parts = []
    groups: Iterable[tuple[Any, Any]] = [((), frame)]
    if others:
        groups = frame.groupby(others, sort=False)
    for names, group in groups:
        if group[treatment].nunique() < 2 or group[metric].isna().all():
            continue
        part = compare_treatments(group, treatment, ["seed"], metric, baseline, level)
        for place, (axis, name) in enumerate(zip(others, names, strict=True)):
            part.insert(place, axis, name)
        parts.append(part)
    if not parts:
        raise FlSimError(f"No cells differ in '{treatment}' alone; there is nothing to compare.")
    result = pd.concat(parts, ignore_index=True)
    for name in planned or ():
        _known(name, [str(label) for label in result[treatment].unique()], f"{treatment} to plan")
    counted = None if planned is None else result[treatment].isin(planned).to_numpy()
    lower = metric_of(metric).direction in (HIGHER_LEAKS, LOWER_BETTER)
    return adjusted(result, margin, lower, counted)


def presented(summary: "pd.DataFrame", short: bool = False) -> "pd.DataFrame":
    """Return a summary for people: a row a group and stage, a column a metric, of text.

    A cell is ``mean (low-high)``, ``mean ±half`` where the interval is as wide on both sides, or
    the mean alone where there is none; ``n`` is the number of seeds, the smallest where metrics
    differ.

    Args:
        summary: as :func:`summarise` returns it.
        short: with as few digits as on a page.
    """
    keys = [str(c) for c in summary.columns[: list(summary.columns).index("metric")]]
    numbers = ["mean", "low", "high", "n", "missing"]
    intervals = [Interval(*row) for row in summary[numbers].itertuples(index=False)]
    digits = [_digits(str(column), short) for column in summary["metric"]]
    cells = [
        with_interval(interval, partial(_number, digits=places))
        for interval, places in zip(intervals, digits, strict=True)
    ]
    said = summary.assign(text=cells)
    order = sorted(dict.fromkeys(said["metric"]), key=column_order)
    index = list(dict.fromkeys(said[keys].itertuples(index=False, name=None)))
    texts = said.pivot(index=keys, columns="metric", values="text").reindex(index=index)[order]
    texts.insert(0, "n", said.groupby(keys)["n"].min().astype(int).astype(str))
    texts.columns.name = None
    return texts.fillna("").reset_index()


def to_csv(frame: "pd.DataFrame") -> str:
    """Return a table as CSV; numbers read back as they are.

    Texts that a spreadsheet would run get an apostrophe in front, see :mod:`fl_sim.cells`.
    """
    import pandas as pd

    buffer = io.StringIO()
    columns = [each_text(column, guarded) for _, column in frame.items()]
    safe = pd.concat(columns, axis=1) if columns else frame
    safe.columns = pd.Index([guarded(str(name)) for name in frame.columns])
    # Python's writer leaves a carriage return unquoted, and a reader takes it for a line's end.
    torn = any("\r" in text for column in columns for text in column.unique() if type(text) is str)
    quoting: Literal[0, 2] = 2 if torn else 0  # all texts, or where it is needed
    safe.to_csv(buffer, index=False, lineterminator="\n", quoting=quoting)
    return buffer.getvalue()


def to_markdown(frame: "pd.DataFrame") -> str:
    """Return a table of text as Markdown; what Markdown or HTML would take for marks is escaped."""
    lines = [[_markdown(str(c)) for c in frame.columns], ["---"] * len(frame.columns)]
    lines += [[_markdown(str(value)) for value in row] for row in frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(frame: "pd.DataFrame", caption: str | None = None) -> str:
    """Return a table of text as LaTeX, for the package booktabs."""
    frame = frame.rename(columns=lambda name: printable(str(name)))
    frame = frame.map(lambda cell: printable(cell) if isinstance(cell, str) else cell)
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format_index(escape="latex", axis="columns")
    return str(style.to_latex(hrules=True, caption=caption, column_format="l" * frame.shape[1]))


def _markdown(text: str) -> str:
    text = re.sub(r"[\\`*|<&]", r"\\\g<0>", printable(text))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # those inside a word are letters
    return text.replace("](", "\\](")  # brackets are intervals, unless a link follows


def _known(name: str, valid: Sequence[str], kind: str) -> None:
    if name not in valid:
        raise FlSimError(f"The sweep has no {kind} '{name}'.{did_you_mean(name, valid)}")


def _digits(column: str, short: bool) -> int:
    """Return how many digits a column's numbers have behind the decimal point."""
    return metric_of(column).places(brief=short)


def with_interval(interval: Interval, number: Callable[[float], str]) -> str:
    """Return a mean with its interval: ``±`` half of it where it is symmetric, else its ends.

    Args:
        interval: the mean and its ends, perhaps ``nan``.
        number: writes one.
    """
    text = number(interval.mean)
    if math.isnan(interval.low) or interval.low == interval.high:
        return text
    low, high = number(interval.low), number(interval.high)
    if interval.symmetric:
        return f"{text} ±{number((interval.high - interval.low) / 2)}"
    dash = " to " if low.startswith("-") or high.startswith("-") else "-"
    return f"{text} ({low}{dash}{high})" if low != high else text


def _beside(group: "pd.DataFrame") -> Beside:
    return lambda name: group.get(name, [])


def _number(value: float, digits: int) -> str:
    if value.is_integer() and abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.{digits}f}"
