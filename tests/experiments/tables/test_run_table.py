"""Tables on a terminal: nothing is cut, however narrow it is."""

import io
from pathlib import Path

import pandas as pd
import pytest

from experiments.tables.console import make_console, print_table
from fl_sim.files import briefly

FRAME = pd.DataFrame(
    {"round": [0, 1], "stage": ["upload", "release"]}
    | {f"metric number {n}": [n + 0.125, n + 0.875] for n in range(12)}
)


def _printed(width: int, frame: pd.DataFrame = FRAME) -> str:
    out = io.StringIO()
    print_table(make_console(file=out, width=width), frame, "What was seen", keys=2)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 400])
def test_every_number_is_there_in_full(width: int) -> None:
    text = _printed(width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert text.count("What was seen") == 1
    for n in range(12):
        assert text.count(f"metric number {n} ") + text.count(f"metric number {n}\n") == 1
        assert text.count(f" {n}.125") == 1 == text.count(f" {n}.875")
    # Each piece says which rows these are.
    assert text.count("upload") == text.count("release") == text.count("round") >= 400 // width // 4


def test_one_column_that_is_too_wide_still_ends() -> None:
    assert _printed(20, FRAME.assign(**{"a" * 40: 1.0})).count("1.000") == 2


def test_a_path_is_told_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert briefly(tmp_path / "runs" / "demo") == str(Path("runs", "demo"))
    assert briefly(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")
    assert briefly(Path("../runs")) == "../runs"
