"""What a person sees on a terminal: tables."""

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from fl_sim.errors import printable

if TYPE_CHECKING:
    import pandas as pd

    from experiments.run.result import Result


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


def print_table(console: Console, frame: "pd.DataFrame", title: str) -> None:
    """Print a data frame, numbers to three digits, absent values as a dash."""
    table = Table(
        title=plain(title),
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "if"
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(plain(column), justify=justify, no_wrap=True)
    for _, row in frame.iterrows():
        table.add_row(*(plain(cell_text(value)) for value in row))
    console.print(table)


def cell_text(value: object) -> str:
    """Return a table's cell for people: numbers to three digits, absent values as a dash."""
    if isinstance(value, float):
        if value != value:
            return "-"
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.3f}"
    return str(value)


# What a terminal has room for; the long table has everything.
COLUMNS = {
    "round": "\nround",
    "stage": "\nstage",
    "ssim raw": "SSIM\nraw",
    "ssim strongest": "SSIM\nbest",
    "ssim_floor_mean": "floor\nmean",
    "ssim_floor_random": "floor\nrandom",
    "identification_distance strongest": "found,\ndist.",
    "identification_correlation strongest": "found,\ncorr.",
    "identification_chance": "found,\nchance",
    "images_intact": "images\nintact",
    "images_damaged": "\ndamaged",
    "images_lost": "\nlost",
    "auc": "\nAUC",
    "auc_floor_scratch": "AUC\nscratch",
    "dice": "\nDice",
    "dice_floor_scratch": "Dice\nscratch",
}

EXPLAINED = (
    "SSIM best: after the strongest restoration. Floors: what an attacker reaches who knows only "
    "public images; scratch: the same network trained on the held-out set alone."
)
"""Below a run's summary."""

LEFT_OUT_BESIDE_COUNTS = ("ssim_floor_random", "identification_chance")


def compact(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Choose and name the columns that a terminal has room for; leave out single attackers."""
    shown = summary[~summary["stage"].str.contains(":")].copy()
    counted = [name for name in COLUMNS if name.startswith("images_") and name in shown]
    for name in counted:
        shown[name] = shown[name].astype("Int64")
    left_out = LEFT_OUT_BESIDE_COUNTS if counted else ()
    present = {o: n for o, n in COLUMNS.items() if o in shown.columns and o not in left_out}
    return shown[list(present)].rename(columns=present)


def print_result(console: Console, result: "Result") -> None:
    """Print a run's summary and where its files are."""
    print_table(console, compact(result.summary()), "Leakage and utility by stage")
    console.print(EXPLAINED, style="dim")
    console.print(f"Table      {plain(result.out / 'results.csv')}")
    console.print(f"Model file {plain(result.artifact)}")
    if result.picture.exists():
        console.print(f"Picture    {plain(result.picture)}")
