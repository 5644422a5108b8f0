"""Texts that a spreadsheet would run, in every CSV file that is written, and back again."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from experiments.tables.summary import to_csv, to_latex, to_markdown
from fl_sim.cells import guarded, read_texts, unguarded
from fl_sim.results import COLUMNS, Results, read_table

RUN = [
    "=1+1",
    "+1+1",
    "-cmd",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "=HYPERLINK()",
    "-1-1",
    "--",
    "'=1",
    "''@x",
    "-\n",
]
KEPT = ["", "-", "-1", "+2.5", "-1e-3", ".5", "a=b", "'quoted", "none", "it's", "'-", " =1"]


@pytest.mark.parametrize("text", RUN)
def test_what_would_be_run_gets_an_apostrophe(text: str) -> None:
    assert guarded(text) == "'" + text and unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", KEPT)
def test_what_is_shown_anyway_stays(text: str) -> None:
    assert guarded(text) == text and unguarded(text) == text


def test_a_table_of_labels_is_read_back_unchanged(tmp_path: Path) -> None:
    frame = pd.DataFrame({"=label": [*RUN, *KEPT], "mean": [-0.5] * len(RUN + KEPT)})
    path = tmp_path / "t.csv"
    path.write_text(to_csv(frame), newline="")
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=label", "mean"] and {row[1] for row in rows} == {"-0.5"}
    assert not [row[0] for row in rows if row[0][:1] in "=+@\t\r" and row[0] not in KEPT]
    back = read_texts(path)
    assert back["=label"].tolist() == frame["=label"].tolist()


def test_a_run_of_a_dataset_with_a_formula_for_a_name(tmp_path: Path) -> None:
    row: dict[str, str | int | float] = dict.fromkeys(COLUMNS, "x")
    row |= {
        "seed": 0,
        "clients": 1,
        "round": 0,
        "value": -2.5,
        "dataset": "=1+1",
        "extraction": "-",
    }
    results = Results(tmp_path / "results.csv")
    results.add([row])
    line = (tmp_path / "results.csv").read_text().splitlines()[1]
    assert ",'=1+1," in line and line.endswith(",-2.5") and ",-," in line
    table = read_table(tmp_path / "results.csv")
    assert table["dataset"].tolist() == ["=1+1"] and table["extraction"].tolist() == ["-"]
    assert table["value"].tolist() == [-2.5]
    assert pd.read_parquet(results.write_parquet(tmp_path / "t.parquet"))["dataset"][0] == "=1+1"


def test_markdown_and_latex_show_what_is_there() -> None:
    frame = pd.DataFrame(
        {"a_b": ["x|y", "*b* `c` <img>", "[t](u)", "0.5 [0.4, 0.6]", "a\x1b[1m\nb"]}
    )
    lines = to_markdown(frame).splitlines()
    assert len(lines) == 7 and lines[0] == "| a_b |"
    assert lines[2:6] == [
        r"| x\|y |",
        r"| \*b\* \`c\` \<img> |",
        r"| [t\](u) |",
        "| 0.5 [0.4, 0.6] |",
    ]
    assert "\x1b" not in lines[6]
    latex = to_latex(pd.DataFrame({"a_b": ["50 % & {x} $ # ^ ~ \\", "\x1b\n"]}))
    assert r"50 \% \& \{x\} \$ \#" in latex and "a\\_b" in latex and "\x1b" not in latex
