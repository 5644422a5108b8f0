"""Rows of studies: kept cells are not run, stale ones are refused, what was run is merged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.run.identity import VERSION
from experiments.studies import published
from experiments.studies import rows as keeping
from experiments.studies.base import RESULTS, STUDIES, GridStudy, How, Values, swept
from experiments.studies.plan import narrowed
from experiments.studies.rows import (
    ROWS,
    long_of,
    merged,
    read_rows,
    require_small,
    rounded,
    write_rows,
)
from experiments.studies.taking import take
from experiments.sweep.grid import Grid
from experiments.sweep.start import sweep
from experiments.tables.summary import summarise, wide
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import fl_sim

NAME = "held_out"
"""The study that stands for all; its grid is replaced."""


def _cells(full: bool = False, epochs: float = 1.0) -> Values:
    phantoms = {"name": "phantoms", "size": 8, "train": 40, "validation": 16, "test": 20}
    return {
        "seeds": [0, 1],
        "scenario": {
            "mode": "centralized",
            "dataset": phantoms,
            "model": "cnn",
            "data": {"public_images": 6},
            "training": {"batch_size": 32, "epochs": epochs},
            "measure": {"scratch_epochs": 0, "columns": 1},
        },
        "grid": {
            "defense": [
                "none",
                {"label": "noise, 0.1", "name": "gaussian_noise", "sigma": 0.1},
            ]
        },
    }


STUDY = GridStudy(NAME, "Rows", lambda long: summarise(long, metrics=["auc", "accuracy"]))


@pytest.fixture(autouse=True)
def _study(monkeypatch: pytest.MonkeyPatch) -> None:
    study = STUDY.study(_cells)
    monkeypatch.setattr(STUDIES, "get", lambda name: study)


@pytest.fixture(scope="module")
def _ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    how = How(workers=0, results=out / "none", overrides=["seeds=[0]"])
    STUDY.run({"cells": _cells()}, out, how)
    return out


@pytest.fixture
def results(_ran: Path, tmp_path: Path) -> Path:
    """A folder of studies' folders, with what one seed measured."""
    take(_ran, results=tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the cells that sweeps are started with."""
    names: list[str] = []

    def noted(grid: Grid, *args: Any, **options: Any) -> Any:
        names.extend(cell.name for cell in grid.cells)
        return sweep(grid, *args, **options)

    monkeypatch.setattr("experiments.studies.base.sweep", noted)
    yield names


def _how(results: Path, **changes: Any) -> How:
    return How(workers=0, results=results, **changes)


def test_a_new_seed_runs_only_that_and_the_table_has_both(
    results: Path, tmp_path: Path, started: list[str]
) -> None:
    out = tmp_path / "out"
    plan = STUDY.plan({"cells": _cells()}, out, _how(results))
    assert str(plan) == "2 of 4 cells are kept in rows.csv; 2 to run."
    table = STUDY.run({"cells": _cells()}, out, _how(results))
    assert len(started) == 2
    assert all(name.endswith("-seed1") for name in started)
    assert (table[table["metric"] == "auc"]["n"] == 2).all()
    origin = json.loads((out / f"{NAME}.json").read_text())
    assert (origin["cells"], origin["seeds"], origin["rows"]) == (4, [0, 1], 8)
    # Interrupted here, or days later: the kept rows of a study's own folder are enough.
    taken = take(out, results=results)
    assert taken.said == "2 cells are new, 2 were there."
    started.clear()
    again = STUDY.run({"cells": _cells()}, tmp_path / "other", _how(results))
    assert started == []
    pd.testing.assert_frame_equal(again, table)
    assert (results / NAME / f"{NAME}.csv").read_bytes() == (out / f"{NAME}.csv").read_bytes()


def test_again_runs_what_is_kept(results: Path, tmp_path: Path, started: list[str]) -> None:
    how = _how(results, again=True, only=["defense=none"], overrides=["seeds=[0]"])
    table = STUDY.run({"cells": _cells()}, tmp_path / "out", how)
    assert len(started) == 1
    assert set(table["defense"]) == {"none", "noise, 0.1"}  # the other's rows are kept


def test_rows_say_what_the_sweep_says(_ran: Path) -> None:
    grid = Grid.of(_cells(), overrides=["seeds=[0]"])
    rows = read_rows(_ran / ROWS)
    long = sweep(grid, _ran / "cells", 0).table
    full = wide(long).set_index(["cell", "stage"])
    kept = wide(long_of(rows)).set_index(["cell", "stage"])
    assert set(kept.columns) == set(full.columns)
    numbers = [name for name in full if name not in ("defense", "seed")]
    pd.testing.assert_frame_equal(
        kept[numbers].astype(float), full[numbers].astype(float), rtol=1e-5
    )
    assert list(kept["defense"]) == list(full["defense"])
    assert (rows["identity_version"] == VERSION).all()
    assert rows["machine"].str.contains(" x ").all()


def test_stale_rows_are_refused_for_tables_left_out_of_runs_and_dropped_when_taken(
    results: Path, tmp_path: Path, _ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published.refresh(results, check=True) == [results / NAME / f"{NAME}.csv"]
    path = results / NAME / ROWS
    rows = read_rows(path)
    odd = rows[rows["grid.defense"] == "none"]
    write_rows(path, pd.concat([rows, odd.assign(cell="centralized-old-0123abcd-seed0")]))
    with pytest.raises(
        FlSimError, match=r"centralized-old-0123abcd-seed0, which is stale: no cell"
    ):
        published.refresh(results)
    plan = STUDY.plan({"cells": _cells()}, tmp_path / "out", _how(results))
    assert "Left out, stale: 1 cells; the first, centralized-old" in str(plan)
    assert len(plan.kept) == len(rows)
    assert "1 are dropped" in take(_ran, results=results).said
    published.refresh(results, check=True)
    monkeypatch.setattr(keeping, "VERSION", VERSION + 1)
    with pytest.raises(FlSimError, match="version 1 of identities, which is now 2"):
        published.refresh(results)


def test_a_table_that_its_rows_do_not_say_is_told_and_made_anew(results: Path) -> None:
    table = results / NAME / f"{NAME}.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"none", b"some"))
    with pytest.raises(FlSimError, match=r"held_out\.csv is not what its rows\.csv says"):
        published.refresh(results, check=True)
    published.refresh(results)
    assert table.read_bytes() == whole


def test_other_settings_fit_no_row(results: Path, tmp_path: Path) -> None:
    how = _how(results, overrides=["training.epochs=2"])
    assert len(STUDY.plan({"cells": _cells()}, tmp_path, how).kept) == 0


def test_rows_of_another_data_file_are_run_again(results: Path, tmp_path: Path) -> None:
    path = results / NAME / ROWS
    write_rows(path, read_rows(path).assign(data="01234567"))
    plan = STUDY.plan({"cells": _cells()}, tmp_path, _how(results))
    assert str(plan).startswith("0 of 4 cells are kept")
    assert "its data file (01234567) is not the one that is here" in str(plan)


def test_an_interrupted_sweep_is_taken_with_the_cells_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.sweep import jobs

    done = jobs._do

    def killed(job: jobs.Job, root: Path | None) -> None:
        if job.kind == "cell" and job.key.endswith("seed1"):
            raise KeyboardInterrupt
        done(job, root)

    monkeypatch.setattr(jobs, "_do", killed)
    out, results = tmp_path / "out", tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        STUDY.run({"cells": _cells()}, out, _how(results))
    assert not (out / f"{NAME}.csv").exists()
    taken = take(out, results=results)
    rows = read_rows(results / NAME / ROWS)
    assert f"{rows['cell'].nunique()} cells are new" in taken.said
    assert set(rows["seed"]) == {0}
    assert taken.path.is_file()
    # A sweep's own folder does not say which study it is of.
    with pytest.raises(FlSimError, match="give --name"):
        take(out / "cells", results=results)
    assert take(out / "cells", NAME, results).said.startswith("0 cells are new")
    with pytest.raises(FlSimError, match="give the same --set"):
        take(out / "cells", NAME, results, changes=["training.epochs=3"])


def test_the_later_run_of_a_cell_wins_whichever_is_merged() -> None:
    base = {name: "" for name in keeping.ORIGIN}
    old = pd.DataFrame(
        [
            {
                "cell": "a-seed0",
                "seed": 0,
                "round": 0,
                "stage": "release",
                **base,
                "began": "2026-01-01T00:00:00Z",
                "auc": 0.1,
            }
        ]
    )
    new = old.assign(began="2026-02-01T00:00:00Z", auc=0.2)
    other = old.assign(cell="b-seed0", auc=0.3)
    for pair in ((old, new), (new, old)):
        both = merged(merged(*pair), other)
        assert list(zip(both["cell"], both["auc"], strict=True)) == [
            ("a-seed0", 0.2),
            ("b-seed0", 0.3),
        ]


def test_rows_are_written_with_six_digits_and_read_back_as_they_are(tmp_path: Path) -> None:
    base = {name: "x" for name in keeping.ORIGIN} | {"identity_version": 1}
    rows = pd.DataFrame(
        [
            {
                "cell": "a-seed0",
                "grid.defense": "=1+1",
                "seed": 0,
                "round": 2,
                "stage": "release:hospital-0",
                "ssim chosen": 0.123456789,
                "file_bytes": 44823123.0,
                "psnr raw": float("inf"),
                "auc": float("nan"),
                **base,
            }
        ]
    )
    path = write_rows(tmp_path / ROWS, rows)
    back = read_rows(path)
    assert back["ssim chosen"][0] == 0.123457
    assert back["file_bytes"][0] == 44823123
    assert back["grid.defense"][0] == "=1+1"
    assert back["psnr raw"][0] == float("inf")
    assert back["auc"].isna().all()
    pd.testing.assert_frame_equal(rounded(back), back)
    long = long_of(back)
    assert list(zip(long["metric"], long["extraction"], strict=True)) == [
        ("ssim", "chosen"),
        ("file_bytes", "-"),
        ("psnr", "raw"),
    ]
    path.write_text("cell,seed\na,x\n")
    with pytest.raises(FlSimError, match="not a study's file of rows"):
        read_rows(path)
    many = rows.assign(**{f"m{number}": 1.0 for number in range(70)})
    with pytest.raises(FlSimError, match="74 metrics"):
        require_small(many, NAME)


def test_only_takes_labels_and_what_stands_before_their_comma() -> None:
    grids = {"cells": Grid.of(_cells())}
    named = narrowed(grids, ["defense=noise"])["cells"].cells
    assert {cell.labels["defense"] for cell in named} == {"noise, 0.1"}
    assert len(narrowed(grids, ["defense=noise", "defense=none"])["cells"].cells) == 4
    with pytest.raises(FlSimError, match=r"no value 'nois'\. Did you mean"):
        narrowed(grids, ["defense=nois"])
    with pytest.raises(FlSimError, match=r"no axis 'defence' for --only\. Did you mean 'defense'"):
        narrowed(grids, ["defence=none"])


def test_the_command_says_what_is_kept(tmp_path: Path, _ran: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ROWS).write_bytes((_ran / ROWS).read_bytes())
    arguments = ["--only", "defense=none", "--set", "seeds=[0]", "--workers", "0"]
    done = fl_sim("study", NAME, "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 cells are kept in rows.csv; 0 to run." in done.stdout


def test_every_study_by_grids_knows_its_cells_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the studies as they are
    monkeypatch.delenv("FL_SIM_DATA", raising=False)
    studies = {e.name: e.component for e in STUDIES.entries() if e.component.by_grids is not None}
    assert {"adaptive", "defenses", "dp_training", "paper_tables", "memories"} <= set(studies)
    for name, study in studies.items():
        assert study.by_grids is not None
        assert study.by_grids.name == name
        assert len(study.known(True, []).labels) > 3, name


def test_a_swept_study_keeps_rows_and_shows_what_left(
    tmp_path: Path, _ran: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.studies.base.find", lambda name, kind: Path(name))
    monkeypatch.setattr("experiments.studies.base.read_toml", lambda path, kind: _cells())
    out = tmp_path / "out"
    out.mkdir()
    (out / ROWS).write_bytes((_ran / ROWS).read_bytes())
    study = swept(NAME, "a-grid", "Swept")
    command: Any = study.commands
    command(out=out, workers=0, changes=["seeds=[0]"])
    said = capsys.readouterr().out
    assert "2 of 2 cells are kept" in said
    assert "upload" not in said
    frame = pd.read_csv(out / f"{NAME}.csv", keep_default_na=False)
    assert set(frame["defense"]) == {"none", "noise, 0.1"}
    assert set(frame["stage"]) == {"upload", "release"}


def test_files_of_rows_are_small() -> None:
    for path in RESULTS.glob(f"*/{ROWS}"):
        require_small(read_rows(path), path.parent.name)
