"""Where progress is shown: on a terminal, in a notebook, in a log; and that output stays apart."""

import html.parser
import io
import os
import pty
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from experiments.run.start import run
from fl_sim import bars as shown
from fl_sim.bars import Bars, Lines, NotebookBars, chosen_progress
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, piece

TWO_PIECES = """
import sys
from fl_sim.bars import chosen_progress
from fl_sim.progress import piece
progress = chosen_progress()
with piece(progress, "rounds", 2):
    for _ in range(2):
        with piece(progress, "hospitals", 3):
            progress.step("one back")
        print("the program's own")
        progress.step()
"""


class Told:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def start(self, what: str, total: int) -> None:
        self.said.append((what, total))

    def step(self, note: str = "", advance: int = 1) -> None:
        self.said.append(advance)

    def finish(self) -> None:
        self.said.append("end")


def _program(**streams: Any) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", TWO_PIECES],
        env={**os.environ, "PYTHONPATH": root, "TERM": "xterm", "COLUMNS": "100"},
        text=True,
        **streams,
    )


def test_in_a_pipe_lines_go_to_stderr_and_the_output_is_the_programs_own() -> None:
    program = _program(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = program.communicate(timeout=60)
    assert output == 2 * "the program's own\n"
    assert errors == "rounds: 2 of 2\n"


def test_on_a_terminal_there_are_bars_and_a_piped_output_stays_in_its_pipe() -> None:
    ours, theirs = pty.openpty()
    program = _program(stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    said: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                said.append(part)
        except OSError:  # the terminal's other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    output, _ = program.communicate(timeout=60)
    reader.join(10)
    os.close(ours)
    assert output == 2 * "the program's own\n"
    terminal = b"".join(said).decode()
    assert "rounds" in terminal and "hospitals" in terminal and "━" in terminal


def test_lines_are_some_seconds_apart_and_tell_the_innermost_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = io.StringIO()
    lines = Lines(file)
    with piece(lines, "rounds", 2):
        for _ in range(2):
            with piece(lines, "hospitals", 4):
                for number in range(4):
                    now += 5.0
                    lines.step(f"{number} is back")
            lines.step()
            lines.step("measuring", advance=0)
    assert file.getvalue().splitlines() == [
        "rounds > hospitals: 3 of 4 2 is back",
        "rounds > hospitals: 2 of 4 1 is back",
        "rounds: 2 of 2",
    ]


class Screen:
    """A notebook's front end: what each display shows now."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.seen: list[str] = []

    def display(self, data: dict[str, str], raw: bool, display_id: bool) -> "Screen":
        assert raw and display_id
        self.shown.append(data)
        self.seen.append(data["text/html"])
        return self

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown[-1] = data
        self.seen.append(data["text/html"])


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Be the kernel of a notebook."""
    screen = Screen()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    kernel = types.SimpleNamespace(kernel=object())
    ipython.get_ipython = lambda: kernel  # type: ignore[attr-defined]
    display.display = screen.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return screen


def test_a_notebook_shows_bars_in_place_and_clears_them(
    notebook: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "NOTEBOOK_INTERVAL", 0.0)
    progress = chosen_progress()
    assert isinstance(progress, NotebookBars)
    for work in ("attack", "<b>defence</b>"):
        with piece(progress, work, 3), piece(progress, "hospitals", 2):
            progress.step("<i>one</i>")
    first, second = notebook.shown  # two works, two places; within one everything is in place
    assert first["text/html"] == second["text/html"] == ""
    busiest = max(notebook.seen, key=len)
    assert busiest.count("<progress") == 2 and 'value="1"' in busiest and "1 of 2" in busiest
    assert "<b>" not in busiest and "<i>" not in busiest
    html.parser.HTMLParser().feed(busiest)


def test_a_notebook_is_not_flooded(notebook: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    progress = chosen_progress()
    with piece(progress, "attack", 1000):
        for _ in range(1000):
            progress.step()
    assert len(notebook.seen) == 2


def test_whoever_calls_chooses(capfd: pytest.CaptureFixture[str]) -> None:
    told = Told()
    assert chosen_progress(told) is told
    assert chosen_progress(False) is SILENT
    assert isinstance(chosen_progress(True), Bars | Lines)
    with pytest.raises(FlSimError, match="progress is 'yes', but it should be True, False"):
        chosen_progress("yes")


def test_a_shell_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not shown.in_notebook()


FEDERATION: dict[str, Any] = {
    "mode": "federated",
    "dataset": {"name": "phantoms", "size": 8, "train": 60, "validation": 30, "test": 30},
    "model": "cnn",
    "attack": "none",
    "training": {"batch_size": 32, "epochs": 1},
    "measure": {"scratch_epochs": 0},
    "threads": 1,
    "federation": {"hospitals": 3, "rounds": 2, "engine": "inprocess", "malicious": []},
}


def test_a_federation_shows_its_hospitals(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    run(FEDERATION, tmp_path / "told", progress=told)
    assert told.said.count(("hospitals back", 3)) == 2
    first = told.said.index(("hospitals back", 3))
    assert told.said[first:][:5] == [("hospitals back", 3), 1, 1, 1, "end"]
    assert capfd.readouterr().err == ""
    run(FEDERATION, tmp_path / "silent", progress=False)
    assert capfd.readouterr() == ("", "")
    run(FEDERATION, tmp_path / "shown")
    output, errors = capfd.readouterr()
    assert output == "" and "rounds: 2 of 2" in errors
