"""What a person sees on a terminal: tables."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from fl_sim.errors import printable
from fl_sim.metrics.vocabulary import (
    LOWER_LEAKS,
    Where,
    column_heading,
    columns_shown,
    describe,
    metric_of,
    split_column,
)
from fl_sim.words import STRONGEST

if TYPE_CHECKING:
    import pandas as pd

    from experiments.run.result import Result

_ENDLESS = 10_000
_NUMBER = re.compile(r"-|-?\d[\d.]*(e[+-]\d+)?|-?inf")


def make_console(**options: Any) -> Console:
    """Return a console that changes nothing in names: no smileys for ``:x:``, no colours by guess.

    Args:
        options: of rich's console.
    """
    return Console(emoji=False, highlight=False, **options)


def plain(text: object) -> str:
    """Return a text from outside (a name, a path, a message) for a console to show as it is.

    Brackets are no markup, and control characters are written out; line breaks stay.
    """
    return escape("\n".join(printable(line) for line in str(text).split("\n")))


def print_table(console: Console, frame: "pd.DataFrame", title: str, keys: int = 1) -> None:
    """Print a data frame, numbers to three digits, absent values as a dash.

    Columns that the console is too narrow for go into further tables below, none is cut.

    Args:
        console: where to.
        frame: a row a line.
        title: above the first table.
        keys: how many leading columns tell the rows apart, and are repeated in every table.
    """
    rest = frame
    while True:
        shown = rest.shape[1]
        while shown > keys + 1 and _width(console, rest.iloc[:, :shown]) > console.width:
            shown -= 1
        console.print(_table(rest.iloc[:, :shown], title))
        if shown == rest.shape[1]:
            return
        title = ""
        rest = rest.iloc[:, [*range(keys), *range(shown, rest.shape[1])]]


def _width(console: Console, frame: "pd.DataFrame") -> int:
    return console.measure(_table(frame), options=console.options.update(width=_ENDLESS)).maximum


def _table(frame: "pd.DataFrame", title: str = "") -> Table:
    table = Table(
        title=plain(title) or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for column, values in frame.items():
        justify: JustifyMethod = "right" if is_numeric(values) else "left"
        table.add_column(plain(column), justify=justify, no_wrap=True)
    for _, row in frame.iterrows():
        table.add_row(*(plain(cell_text(value)) for value in row))
    return table


def cell_text(value: object, digits: int = 3) -> str:
    """Return a table's cell for people: numbers rounded, absent values as a dash."""
    if isinstance(value, float):
        if value != value:
            return "-"
        whole = value.is_integer() and (abs(value) >= 10 or digits < 2)
        return f"{value:.0f}" if whole else f"{value:.{digits}f}"
    return str(value)


EXPLAINED = (
    "Chosen: the extraction that an attacker would choose without a true image. Best: picked with "
    "the true images, metric by metric, an upper end that no attacker can pick himself. Floors: "
    "what he reaches who knows only public images, or guesses as often as there are extractions; "
    "scratch: the same network trained on the held-out set alone."
)
"""Below a run's summary."""


def shown_columns(where: Where, columns: Iterable[str]) -> list[str]:
    """Return the columns of metrics that a terminal has room for, in order."""
    chosen = columns_shown(where, columns)
    counted = any(metric_of(column).format == "count" for column in chosen)
    return [column for column in chosen if not (counted and metric_of(column).minor)]


def headed(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table with metrics as a terminal has room for them: short names, their digits."""
    told = {str(c): metric_of(str(c)) for c in frame if describe(split_column(str(c))[0]).declared}
    shown = frame.copy()
    for column, metric in told.items():
        if shown[column].dtype.kind == "f":
            shown[column] = [cell_text(value, metric.places()) for value in shown[column]]
    return shown.rename(columns={column: column_heading(column) for column in told})


def explained(frame: "pd.DataFrame") -> str:
    """Return what stands below a run's summary: what its columns mean.

    Args:
        frame: with the summary's own columns.
    """
    chosen = shown_columns("run", map(str, frame))
    turned = [c for c in chosen if c.endswith(f" {STRONGEST}") and metric_of(c).lower_leaks]
    said = ", ".join(metric_of(column).label for column in turned)
    return f"{EXPLAINED} {said}: {LOWER_LEAKS}." if said else EXPLAINED


def compact(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Choose and name the columns that a terminal has room for; leave out single attackers."""
    shown = summary[~summary["stage"].str.contains(":")]
    places = {"round": "\nround", "stage": "\nstage"}
    chosen = shown_columns("run", map(str, shown))
    return headed(shown[[*places, *chosen]].rename(columns=places))


def is_numeric(column: "pd.Series[Any]") -> bool:
    """Whether a column holds numbers, or texts of them, and belongs to the right."""
    return column.dtype.kind in "if" or bool(
        len(column) and column.map(lambda cell: bool(_NUMBER.fullmatch(str(cell)))).all()
    )


def print_result(console: Console, result: "Result") -> None:
    """Print a run's summary and where its files are."""
    view = result.summary()
    print_table(console, compact(view), "Leakage and utility by stage", keys=2)
    console.print(explained(view), style="dim")
    console.print(f"Table      {plain(result.out / 'results.csv')}")
    console.print(f"Model file {plain(result.artifact)}")
    if result.picture.exists():
        console.print(f"Picture    {plain(result.picture)}")
