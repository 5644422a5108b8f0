"""Progress as a person sees it: bars on a terminal and in a notebook, plain lines elsewhere."""

import html
import importlib
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from fl_sim.errors import FlSimError, printable, shown
from fl_sim.progress import SILENT, Progress

PLAIN_INTERVAL = 15.0
"""Seconds between two plain lines."""
NOTEBOOK_INTERVAL = 0.2
"""Seconds between two changes of what a notebook shows: each is a message to the browser."""


class Bars:
    """Progress as bars, nested pieces below each other; for a terminal.

    Args:
        console: the terminal.
        remaining: whether bars tell the time that is left; not where the notes do.
    """

    def __init__(self, console: Console, remaining: bool = True) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if remaining else []),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            # What is printed meanwhile goes above the bars; not where it goes to a file.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
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


@dataclass
class _Piece:
    """A piece of work that has begun."""

    what: str
    total: int
    done: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> str:
        """How far it has come, and how it stands."""
        return f"{self.done} of {self.total} {self.note}".rstrip()


class Lines:
    """Progress as a plain line every few seconds; for logs and pipes.

    A line tells of the innermost piece. The end of the outermost one always has a line.

    Args:
        file: where to; ``sys.stderr`` where not given, so that a program's output stays its own.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._pieces: list[_Piece] = []
        self._written = time.monotonic()

    def start(self, what: str, total: int) -> None:
        """Note a piece of work."""
        if not self._pieces:
            self._written = time.monotonic()
        self._pieces.append(_Piece(what, total))

    def step(self, note: str = "", advance: int = 1) -> None:
        """Count, and write a line if the last one is some seconds old."""
        if not self._pieces:
            return
        piece = self._pieces[-1]
        piece.done, piece.note = piece.done + advance, note
        ended = advance > 0 and piece.done == piece.total and len(self._pieces) == 1
        if ended or time.monotonic() - self._written >= PLAIN_INTERVAL:
            self._written = time.monotonic()
            where = " > ".join(piece.what for piece in self._pieces)
            print(f"{where}: {piece.count}", file=self._file or sys.stderr, flush=True)

    def finish(self) -> None:
        """Forget the innermost piece."""
        if self._pieces:
            self._pieces.pop()


class NotebookBars:
    """Progress as bars in the output of a notebook's cell, which change in place.

    Nothing but IPython's own display is used: rich would need ipywidgets, and shows nothing
    without. The bars go when the work is done.
    """

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._handle: Any = None
        self._drawn = 0.0

    def start(self, what: str, total: int) -> None:
        """Open a bar."""
        self._pieces.append(_Piece(what, total))
        self._draw()

    def step(self, note: str = "", advance: int = 1) -> None:
        """Move the innermost bar."""
        if self._pieces:
            piece = self._pieces[-1]
            piece.done, piece.note = piece.done + advance, note
            if time.monotonic() - self._drawn >= NOTEBOOK_INTERVAL:
                self._draw()

    def finish(self) -> None:
        """Close the innermost bar."""
        if self._pieces:
            self._pieces.pop()
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        lines = [f"{piece.what}: {piece.count}" for piece in self._pieces]
        shown = {
            "text/html": "".join(map(_bar, self._pieces)),
            "text/plain": printable("; ".join(lines)),
        }
        if self._handle is None:
            display = importlib.import_module("IPython.display").display  # there, in a notebook
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
        if not self._pieces:  # the next work is another cell's
            self._handle = None


def _bar(piece: _Piece) -> str:
    seconds = round(time.monotonic() - piece.began)
    texts = (piece.what, f"{piece.done} of {piece.total}", f"{seconds} s", piece.note)
    what, *told = (html.escape(printable(text)) for text in texts)
    return (
        '<div style="display:flex;gap:1em;align-items:center;font-variant-numeric:tabular-nums">'
        f'<span style="min-width:10em">{what}</span>'
        f'<progress max="{max(1, piece.total)}" value="{piece.done}"></progress>'
        f"<span>{' · '.join(text for text in told if text)}</span></div>"
    )


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose cells can show pages and pictures."""
    # One that is a kernel has imported IPython; nobody else pays for that.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def make_progress(console: Console, remaining: bool = True) -> Bars | Lines:
    """Bars on a terminal, lines elsewhere; for commands.

    Args:
        console: where to.
        remaining: whether bars tell the time that is left; not where the notes do.
    """
    terminal = console.is_terminal and _is_terminal(console.file)
    return Bars(console, remaining) if terminal else Lines(console.file)


def chosen_progress(progress: Progress | bool | None = None, remaining: bool = True) -> Progress:
    """Return where a call from Python reports.

    Args:
        progress: ``None`` or ``True``: bars in a notebook and on a terminal, plain lines elsewhere,
            all of it to ``sys.stderr``; ``False``: nothing; anything that has ``start``, ``step``
            and ``finish``: that.
        remaining: whether bars on a terminal tell the time that is left.

    Raises:
        FlSimError: if it is none of these.
    """
    if progress is None or progress is True:
        if in_notebook():
            return NotebookBars()
        return make_progress(Console(stderr=True, emoji=False, highlight=False), remaining)
    if progress is False:
        return SILENT
    if not all(callable(getattr(progress, name, None)) for name in ("start", "step", "finish")):
        raise FlSimError(
            f"progress is {shown(progress)}, but it should be True, False, or an object with "
            f"start, step and finish, see fl_sim.progress.Progress."
        )
    return progress


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # no file, as under pythonw, or a closed one
        return False
