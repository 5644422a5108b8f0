"""What a person sees: progress bars on a terminal, plain lines elsewhere, and tables."""

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fl_sim.errors import printable

if TYPE_CHECKING:
    import pandas as pd

    from experiments.result import Result

PLAIN_INTERVAL = 15.0


class Bars:
    """Progress as bars, nested pieces below each other; for a terminal."""

    def __init__(self, console: Console, remaining: bool = True) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if remaining else []),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self._tasks: list[TaskID] = []

    def start(self, what: str, total: int) -> None:
        """Open a bar."""
        if not self._tasks:
            self._bars.start()
        self._tasks.append(self._bars.add_task(what, total=total, note=""))

    def step(self, note: str = "", advance: int = 1) -> None:
        """Move the innermost bar."""
        if self._tasks:
            self._bars.update(self._tasks[-1], advance=advance, note=note)

    def finish(self) -> None:
        """Close the innermost bar."""
        if self._tasks:
            self._bars.remove_task(self._tasks.pop())
        if not self._tasks:
            self._bars.stop()


class Lines:
    """Progress as a plain line every few seconds; for logs and pipes."""

    def __init__(self) -> None:
        self._pieces: list[list[float]] = []  # done, total, when the last line was written
        self._names: list[str] = []

    def start(self, what: str, total: int) -> None:
        """Note a piece of work."""
        self._names.append(what)
        self._pieces.append([0.0, float(total), time.monotonic()])

    def step(self, note: str = "", advance: int = 1) -> None:
        """Count, and write a line if the last one is some seconds old."""
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece[0] += advance
        if time.monotonic() - piece[2] >= PLAIN_INTERVAL or piece[0] == piece[1]:
            piece[2] = time.monotonic()
            where = " > ".join(self._names)
            print(f"{where}: {piece[0]:.0f} of {piece[1]:.0f} {note}".rstrip(), flush=True)

    def finish(self) -> None:
        """Forget the innermost piece."""
        if self._pieces:
            self._pieces.pop()
            self._names.pop()


def make_progress(console: Console, remaining: bool = True) -> Bars | Lines:
    """Bars on a terminal, lines elsewhere.

    Args:
        console: the terminal.
        remaining: whether bars tell the time that is left; not where the notes do.
    """
    return Bars(console, remaining) if console.is_terminal and sys.stdout.isatty() else Lines()


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
        table.add_row(*(plain(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
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
    console.print(
        "SSIM best: after the strongest restoration. Floors: what an attacker reaches who knows "
        "only public images;\nscratch: the same network trained on the held-out set alone.",
        style="dim",
    )
    console.print(f"Table      {plain(result.out / 'results.csv')}")
    console.print(f"Model file {plain(result.artifact)}")
    if result.picture.exists():
        console.print(f"Picture    {plain(result.picture)}")
