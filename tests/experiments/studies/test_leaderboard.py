"""The leaderboard: it says what is kept, a defence joins by one command, rows are checked."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.handbook.leaderboard import table
from experiments.run.identity import VERSION
from experiments.studies import benchmark, leaderboard
from experiments.studies.base import RESULTS
from experiments.studies.benchmark import PHANTOMS, SEEDS, SKIN, faults, grid_of, own_defense
from experiments.studies.leaderboard import (
    COLUMNS,
    MEANS,
    MEANS_KEPT,
    ROWS_KEPT,
    SUBMITTED,
    as_text,
    board,
    lines_of,
    of_means,
)
from experiments.studies.rows import ROWS, read_rows, write_rows
from fl_sim.errors import FlSimError
from fl_sim.metrics.intervals import metric_interval
from tests.experiments.cli_kit import ROOT, fl_sim

OWN = ROOT / "experiments/examples/own_defense.py"


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return board()


def test_an_attack_is_named_where_the_label_of_its_study_does_not(whole: pd.DataFrame) -> None:
    own = whole.loc[whole["study"] == "answers", "attack"]
    assert len(own) and own.str.startswith("answers, ").all()
    assert "Transpose" in set(whole["attack"])
    assert not whole["attack"].str.startswith("transpose, ").any()


def test_lines_of_rows_are_their_means_with_intervals(whole: pd.DataFrame) -> None:
    assert tuple(whole) == COLUMNS
    rows = read_rows(RESULTS / "defenses" / ROWS)
    own = rows[
        (rows["grid.model"] == "CNN")
        & (rows["grid.defense"] == "consistent distillation")
        & (rows["stage"] == "release")
    ]
    (line,) = whole[
        (whole["kept"] == ROWS_KEPT)
        & (whole["network"] == "CNN")
        & (whole["attack"] == "Transpose")
        & (whole["defence"] == "consistent distillation")
    ].to_dict("records")
    assert (line["data"], line["place"], line["attack"]) == (
        "DermaMNIST rebuilt",
        "data lake",
        "Transpose",
    )
    assert line["seeds"] == own["seed"].nunique() >= 10
    for name, metric in {"found_chosen": "identification_correlation chosen", "auc": "auc"}.items():
        interval = metric_interval(metric, own[metric], lambda other: own.get(other, []))
        assert line[name] == pytest.approx(interval.mean)
        assert (line[f"{name}_low"], line[f"{name}_high"]) == pytest.approx(
            (interval.low, interval.high)
        )
    assert line["found_floor"] == pytest.approx(own["identification_floor"].mean())
    controls = rows[(rows["grid.model"] == "CNN") & (rows["stage"] == "release")]
    auc = controls.groupby("grid.defense")["auc"].mean()
    assert line["auc_from_scratch"] == pytest.approx(auc["from scratch, same views"])
    assert line["auc_trusted"] == pytest.approx(auc["trusted training, same views"])


def test_means_are_marked_and_stand_only_where_no_rows_are_kept(whole: pd.DataFrame) -> None:
    keys = ["data", "network", "place", "attack", "defence"]
    kept = whole[whole["kept"] == ROWS_KEPT]
    means = whole[whole["kept"] == MEANS_KEPT]
    assert len(means) and not set(map(tuple, means[keys].to_numpy())) & set(
        map(tuple, kept[keys].to_numpy())
    )
    assert {"defenses", "paper_tables", "confirm_defenses"} <= set(means["study"])
    assert not whole[whole["attack"].isin(["", "none"])].size
    assert (whole["seeds"] >= 1).all()
    for low, high in (("found_best_low", "found_best_high"), ("auc_low", "auc_high")):
        there = whole[[low, high]].dropna()
        assert (there >= 0).all(axis=None) and (there <= 1).all(axis=None)
        assert (there[low] <= there[high]).all()


def test_a_published_table_that_changed_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="which is not there"):
        list(of_means(tmp_path / "no.csv", MEANS[0]))
    (tmp_path / "t.csv").write_text("defence,n,auc\nnone,3,0.9\n")
    with pytest.raises(FlSimError, match=r"no column 'defense'\. Did you mean 'defence'"):
        list(of_means(tmp_path / "t.csv", MEANS[0]))


def _rows(**changed: float) -> pd.DataFrame:
    """Return a file of rows as the benchmark writes it, without having run it."""
    lines = []
    for seed in SEEDS:
        same = {
            "cell": f"centralized-dermamnist-cnn-transpose-mine-1-seed{seed}",
            "grid.dataset": SKIN,
            "grid.model": "CNN",
            "grid.attack": "Transpose",
            "grid.defense": "mine",
            "seed": seed,
            "round": 0,
        }
        metrics = {name: 0.5 for name in (*benchmark.NEEDED, *benchmark.FLOORS)}
        origin = {
            "identity_version": VERSION,
            "fl_sim": "0.1.0",
            "torch": "2",
            "data": "266d5d8b",
            "machine": "x",
            "cpu_seconds": "1",
            "began": "2026",
        }
        for stage, key in (("upload", 1976.0), ("release", np.nan)):
            line = {**same, "stage": stage, **metrics, "key_bytes": key, "cap_bytes": 0.0}
            lines.append({**line, **changed, **origin})
    return pd.DataFrame(lines)


def checked(folder: Path, rows: pd.DataFrame) -> list[str]:
    return faults(write_rows(folder / "rows.csv", rows))


def test_a_right_file_has_no_faults(tmp_path: Path) -> None:
    assert checked(tmp_path, _rows()) == []
    done = fl_sim("leaderboard", "check", str(tmp_path / "rows.csv"))
    assert done.returncode == 0 and "nothing is wrong" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda rows: rows.drop(columns="identification_floor"),
            "no column 'identification_floor'",
        ),
        (lambda rows: rows.drop(columns="key_bytes"), "no column 'key_bytes'"),
        (lambda rows: rows.drop(columns="grid.attack"), "no column 'grid.attack'"),
        (lambda rows: rows.iloc[:0], "it has no rows"),
        (lambda rows: rows[rows["seed"] != 1], r"seeds at release are \[0, 2\]"),
        (lambda rows: rows.assign(identity_version=0), "version 0 of identities"),
        (lambda rows: rows.assign(key_bytes=0.0), "key is missing"),
        (lambda rows: rows.assign(ssim_floor_mean=np.nan), "ssim_floor_mean is missing"),
        (lambda rows: rows.assign(auc=1.5), "auc is 1.5, but lies between 0 and 1"),
        (lambda rows: rows.assign(**{"ssim chosen": 0.9}), "ssim chosen is above ssim strongest"),
        (lambda rows: rows.assign(**{"grid.model": "ResNet18"}), "model is 'ResNet18'"),
        (lambda rows: rows.assign(**{"grid.defense": list("ababab")}), "2 labels of defense"),
        (lambda rows: rows.assign(data=list("ababab")), "different data files"),
        (lambda rows: rows.assign(**{"grid.dataset": PHANTOMS}), "do not fit each other"),
        (lambda rows: rows.assign(machine=""), "does not say its machine"),
        (lambda rows: rows.assign(cell="c-seed7"), "stands beside the seed"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(spoil, said: str, tmp_path: Path) -> None:
    found = checked(tmp_path, spoil(_rows()))
    assert any(re.search(said, fault) for fault in found), found


def test_the_command_refuses_a_wrong_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", _rows(auc=2.0))
    done = fl_sim("leaderboard", "check", str(tmp_path / "rows.csv"))
    assert done.returncode == 1 and "auc is 2" in done.stdout
    assert fl_sim("leaderboard", "check", str(tmp_path / "none.csv")).returncode == 2


def test_what_was_handed_in_is_right_and_stands_on_the_board(tmp_path: Path) -> None:
    for path in SUBMITTED.glob("*.csv"):
        assert faults(path) == []
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "mine.csv", _rows())
    (line,) = board(tmp_path, tmp_path / "in").to_dict("records")
    assert (line["defence"], line["kept"], line["study"]) == ("mine", "handed in", "mine")
    assert (line["data"], line["seeds"], line["ssim_best"]) == ("DermaMNIST rebuilt", 3, 0.5)


def test_a_cap_is_shown_in_bytes_unbounded_or_not_at_all() -> None:
    shown = [
        as_text(lines_of(_rows(cap_bytes=value)))["Cap, bytes"].item()
        for value in (12345.0, np.inf, np.nan)
    ]
    assert shown == ["12,345", leaderboard.UNBOUNDED, ""]


def test_a_defence_is_named_or_lies_in_a_file(tmp_path: Path) -> None:
    own = own_defense(str(OWN), ["bits=5"])
    assert (own.name, own.plugins, own.label) == ("rounding", ("own_defense",), "rounding, bits 5")
    cells = grid_of(own, PHANTOMS).cells
    assert [cell.scenario.seed for cell in cells] == list(SEEDS)
    assert cells[0].labels["dataset"] == PHANTOMS
    with pytest.raises(FlSimError, match="Did you mean 'lwlrd'"):
        own_defense("lwldr")
    with pytest.raises(FlSimError, match="does not exist"):
        own_defense(str(tmp_path / "no.py"))
    (tmp_path / "empty_defense.py").write_text("")
    with pytest.raises(FlSimError, match="registers no defence"):
        own_defense(str(tmp_path / "empty_defense.py"))
    with pytest.raises(FlSimError, match="bitss"):
        grid_of(own_defense("random_bits", ["bitss=5"]), PHANTOMS)


def test_the_benchmarks_cell_is_the_studys() -> None:
    from experiments.run.shipped import find
    from experiments.sweep.grid import Grid

    study = {c.name for c in Grid.of(find("defenses-dermamnist-cnn", "grid")).cells}
    assert {cell.name for cell in grid_of(own_defense("lwlrd"), SKIN).cells} <= study


@pytest.mark.slow
def test_a_plugin_is_measured_and_its_rows_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        "dataset": {"name": "phantoms", "size": 8, "train": 60, "validation": 30, "test": 30},
        "attack": {"name": "transpose", "images": 4},
        "training": {"epochs": 1, "batch_size": 32},
    }
    monkeypatch.setattr(benchmark, "CASES", {SKIN: small, PHANTOMS: small})
    monkeypatch.setattr(benchmark, "data_of", lambda root: PHANTOMS)
    words = ["add", "--defense", str(OWN), "--set", "bits=5", "--out", str(tmp_path)]
    done = fl_sim("leaderboard", *words, "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert "embedded phantoms are taken" in done.stdout and "rounding, bits 5" in done.stdout
    assert faults(tmp_path / ROWS) == []
    (line,) = lines_of(read_rows(tmp_path / ROWS)).to_dict("records")
    assert line["data"] == PHANTOMS and line["seeds"] == len(SEEDS) and line["seconds"] > 0


def test_the_terminal_shows_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    done = fl_sim("leaderboard", "--defense", "lwlrd", "--network", "cnn", "--csv", str(path))
    assert done.returncode == 0 and "LWLRD, SGD 1e-2 to 1e-4" in done.stdout
    lines = pd.read_csv(path)
    assert lines["defence"].str.contains("LWLRD").all() and (lines["network"] == "CNN").all()
    refused = fl_sim("leaderboard", "--attack", "transport")
    assert refused.returncode == 2 and "no attack 'transport'" in refused.stderr


class _Table(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_a_table_that_needs_no_script(whole: pd.DataFrame) -> None:
    reader = _Table()
    reader.feed(table(whole))
    tags = [tag for tag, _ in reader.tags]
    heads = [given for tag, given in reader.tags if tag == "th"]
    assert tags.count("caption") == 1
    assert sum(given.get("scope") == "row" for given in heads) == len(whole)
    assert all(given.get("scope") in ("row", "col") for given in heads)
    columns = sum(given.get("scope") == "col" for given in heads)
    assert tags.count("td") == len(whole) * (columns - 1)
    assert "onclick" not in table(whole)
    spoilt = whole.head(1).assign(defence="<b>&")
    assert "&lt;b&gt;&amp;" in table(spoilt)
