"""Sweeps: one table over all cells, shared work done once, failures, kills, and Ray's workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import clients.hospital as hospital
import experiments.run.scratch_floor as floor
from experiments.run.measurer import Measurer
from experiments.run.start import run
from experiments.sweep.start import SweepResult, sweep
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.results import COLUMNS, without_timings
from tests.experiments.cli_kit import fl_sim

SCENARIO: dict[str, Any] = {
    "mode": "centralized",
    "dataset": {"name": "phantoms", "size": 8, "train": 96, "validation": 40, "test": 40},
    "model": "cnn",
    "data": {"public_images": 16},
    "measure": {"scratch_epochs": 1},
    "training": {"batch_size": 32, "epochs": 1},
}
LSB = {"label": "low bits", "name": "dec", "images": 3, "codec": "png"}
SIGNS = {"label": "signs", "name": "dec", "images": 1, "codec": "gzip", "carrier": "sign"}
LWLRD = {"label": "lwlrd", "name": "lwlrd", "epochs": 1}
NOISE = {"label": "noise", "name": "gaussian_noise", "sigma": 0.001}
GRID: dict[str, Any] = {
    "scenario": SCENARIO,
    "grid": {
        "attack": ["none", {"label": "T", "name": "transpose", "images": 4}, LSB, SIGNS],
        "defense": [LWLRD, NOISE],
    },
}

PLUGIN = """
import os, signal
from pathlib import Path
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport
from fl_sim.settings import Settings

class FragileSettings(Settings):
    marker: str = ""

@DEFENSES.register("fragile", "kills its process the first time, or fails")
class Fragile(Defense):
    Settings = FragileSettings
    def apply(self, release):
        if not self.settings.marker:
            raise RuntimeError("the scanner\\nis on fire")
        marker = Path(self.settings.marker)
        if marker.name == "always" or not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return DefenseReport(seconds=0.0, images=0)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    yield


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "sweep_test_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    return "sweep_test_plugin"


def _count(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    calls: list[int] = []
    original = getattr(module, name)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, counted)
    return calls


def _same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(without_timings(one), without_timings(two))


def test_a_sweep_is_its_single_runs_and_shared_work_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = _count(monkeypatch, hospital, "train")
    floors = _count(monkeypatch, floor, "train")
    measured = _count(monkeypatch, Measurer, "record")
    result = sweep(GRID, tmp_path / "out", workers=0)
    # One honest training for the network that nobody attacks and both kinds of DEC.
    kinds = result.seconds["kind"].value_counts().to_dict()
    assert kinds == {"cell": 8, "upload": 4, "training": 1, "floor": 1}
    assert (len(honest), len(floors)) == (1, 1)
    assert len(measured) == 4 + 8  # uploads and releases

    table = result.table
    assert tuple(table.columns) == ("cell", "grid.attack", "grid.defense", *COLUMNS)
    assert len(table["cell"].unique()) == 8 and not len(result.failed)
    for number in (0, 3, 4):  # nobody, one that trains for itself, one that starts from honesty
        cell = result.grid.cells[number]
        alone = run(cell.scenario, tmp_path / "alone" / cell.name)
        own = table[table["cell"] == cell.name][list(COLUMNS)].reset_index(drop=True)
        _same(alone.table, own)
        here = result.out / "cells" / cell.name
        assert checksum(alone.artifact) == checksum(here / "artifacts/release.safetensors")
        assert _names(alone.out) == _names(here)

    assert {"table.csv", "table.parquet", "summary.csv", "summary.md", "summary.tex"} <= {
        path.name for path in result.out.iterdir()
    }
    pd.testing.assert_frame_equal(pd.read_parquet(result.out / "table.parquet"), table)
    session = json.loads((result.out / "sweep.json").read_text())["sessions"][0]
    assert session["jobs"] == 14 and 0 < session["efficiency"] <= 1

    # Nothing is run again, and what is new starts from what is there.
    before = {p: os.stat(p).st_mtime_ns for p in result.out.glob("cells/*/[!.]*")}
    assert len(before) > 40
    larger = {**GRID, "grid": {**GRID["grid"], "defense": [LWLRD, NOISE, "none"]}}
    grown = sweep(larger, tmp_path / "out", workers=0)
    assert (len(honest), len(floors)) == (1 + 1, 1)  # once more by this test's own single run
    assert before == {p: os.stat(p).st_mtime_ns for p in before}
    assert len(grown.grid.cells) == 12 and len(grown.table["cell"].unique()) == 12


def _names(folder: Path) -> set[str]:
    paths = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return {str(path) for path in paths if not path.name.startswith(".")}


def test_a_cell_that_fails_does_not_stop_the_rest(
    tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: dict[str, Any] = {
        "scenario": {**SCENARIO, "plugins": [plugin]},
        "grid": {
            # No hospital has so many images, so the first attack fails before any defence.
            "attack": [{**LSB, "images": 5000, "label": "greedy"}, "none"],
            "defense": ["fragile", NOISE],
        },
    }
    result = sweep(grid, tmp_path / "out", workers=0)
    failed = result.failed.set_index(["attack", "defense"])["error"]
    assert set(failed.index) == {("greedy", "fragile"), ("greedy", "noise"), ("none", "fragile")}
    assert "lower it" in failed["greedy", "noise"]
    assert "'fragile' failed: RuntimeError: the scanner" in failed["none", "fragile"]
    assert list(result.table["grid.attack"].unique()) == ["none"]
    assert len((result.out / "failed.csv").read_text().splitlines()) == 4
    (broken,) = result.failed[result.failed["attack"] == "none"]["cell"]
    assert "Traceback" in (result.out / "cells" / broken / "failures.log").read_text()

    # Mended, the same command runs what had failed, and only that.
    kind = sys.modules[plugin].Fragile
    report = sys.modules[plugin].DefenseReport
    monkeypatch.setattr(kind, "apply", lambda self, release: report(seconds=0.0, images=0))
    again = sweep(grid, tmp_path / "out", workers=0)
    assert set(again.failed["attack"]) == {"greedy"}
    assert set(again.table["grid.defense"]) == {"fragile", "noise"}


def test_a_federation_is_a_cell_and_gets_its_floor(tmp_path: Path) -> None:
    federation = {"hospitals": 2, "rounds": 2, "engine": "ray"}
    attack, defense = {"name": "dec", "images": 3, "codec": "png"}, {"name": "lwlrd", "epochs": 1}
    grid = {
        "scenario": {**SCENARIO, "attack": attack, "defense": defense},
        "grid": {
            "variant": [
                {"label": "lake", "mode": "centralized"},
                {"label": "federation", "mode": "federated", "federation": federation},
            ]
        },
    }
    result = sweep(grid, tmp_path / "out", workers=0)
    assert not len(result.failed)
    kinds = result.seconds["kind"].value_counts().to_dict()
    assert kinds == {"cell": 2, "upload": 1, "training": 1, "floor": 1}
    alone = run(result.grid.cells[1].scenario, tmp_path / "alone")
    own = result.table[result.table["grid.variant"] == "federation"]
    _same(alone.table, own[list(COLUMNS)].reset_index(drop=True))


def test_an_attacker_who_knows_the_defence_measures_by_himself(tmp_path: Path) -> None:
    attacker = {"knows_defense": True, "rehearsal_epochs": 0.1, "rehearsal_defenses": 1}
    attack = {"name": "transpose", "images": 4}
    grid = {
        "scenario": {**SCENARIO, "attack": attack, "data": {"public_images": 24}},
        "grid": {
            "attacker": [{"label": "naive"}, {"label": "knows", **attacker}],
            "defense": [LWLRD, NOISE],
        },
    }
    result = sweep(grid, tmp_path / "out", workers=0)
    kinds = result.seconds["kind"].value_counts().to_dict()
    # The naive one's measurements are the same under both defences; the network always is.
    assert kinds == {"cell": 4, "upload": 3, "training": 1, "floor": 1}
    cell = result.grid.cells[3]
    alone = run(cell.scenario, tmp_path / "alone")
    own = result.table[result.table["cell"] == cell.name]
    _same(alone.table, own[list(COLUMNS)].reset_index(drop=True))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"workers": -1}, "0 workers or more"),
        ({"grid": {**GRID, "scenario": {**SCENARIO, "dataset": "none.npz"}}}, "none.npz"),
        ({"data_root": "/no/such/folder"}, "not a folder"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(
    tmp_path: Path, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(FlSimError, match=words):
        sweep(**{"grid": GRID, "out": tmp_path / "out", "workers": 0, **keywords})
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_a_finished_cell_has_no_table(tmp_path: Path) -> None:
    from experiments.sweep.grid import Grid

    with pytest.raises(FlSimError, match="No cell of the sweep"):
        _ = SweepResult(Grid.of(GRID), tmp_path).table


TOML = """
seeds = [0, 1]
[scenario]
mode = "centralized"
dataset = {name = "phantoms", size = 8, train = 96, validation = 40, test = 40}
model = "cnn"
data = {public_images = 16}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 1}
[grid]
attack = ["none", {label = "low bits", name = "dec", images = 3, codec = "png"}]
defense = ["none", {label = "lwlrd", name = "lwlrd", epochs = 1}, "gaussian_noise"]
"""


def test_the_command_line_says_what_failed_and_its_exit_code_too(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(TOML)
    arguments = ("g.toml", "--out", "out", "--workers", "0", "--set", "seeds=[0]")
    done = fl_sim("sweep", *arguments, "--set", "attack.images=800", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "6 cells" in done.stdout and "3 of 6 cells failed" in done.stdout
    assert "AUC" in done.stdout and "lwlrd" in done.stdout and "left" in done.stdout
    assert (tmp_path / "out/failed.csv").exists() and (tmp_path / "out/summary.tex").exists()

    done = fl_sim("sweep", "g.toml", "--set", "defence=none", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'defense'" in done.stderr
    assert "Traceback" not in done.stderr
    done = fl_sim("sweep", "demmo", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'demo'" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_is_killed_continues_to_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text(TOML)
    command = [sys.executable, "-m", "experiments.cli.main", "sweep", "g.toml", "--workers", "1"]
    root = str(Path(__file__).parents[3])
    driver = subprocess.Popen(
        [*command, "--out", "cut"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    cells = tmp_path / "cut" / "cells"
    while len(list(cells.glob("*/finished"))) < 2 and driver.poll() is None:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    output = driver.communicate(timeout=60)[0]
    done = {path: os.stat(path).st_mtime_ns for path in cells.glob("*/finished")}
    assert 2 <= len(done) < 12, output
    whole = sweep(tmp_path / "g.toml", tmp_path / "whole", workers=0)
    resumed = sweep(tmp_path / "g.toml", tmp_path / "cut", workers=0)
    assert {path: os.stat(path).st_mtime_ns for path in done} == done
    assert not len(resumed.failed) and len(whole.table["cell"].unique()) == 12
    _same(whole.table, resumed.table)
    one, two = (pd.read_csv(tmp_path / f / "summary.csv") for f in ("whole", "cut"))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_one_that_always_dies_is_noted(
    tmp_path: Path, plugin: str
) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    grid: dict[str, Any] = {
        "scenario": {**SCENARIO, "plugins": [plugin]},
        "grid": {
            "defense": [
                "none",
                {"label": "once", "name": "fragile", "marker": str(once)},
                {"label": "always", "name": "fragile", "marker": str(always)},
            ]
        },
    }
    on_ray = sweep(grid, tmp_path / "ray", workers=2)
    assert once.exists()
    assert list(on_ray.failed["defense"]) == ["always"]
    assert "killed 4 times" in on_ray.failed["error"].iloc[0]
    grid["grid"]["defense"].pop()
    here = sweep(grid, tmp_path / "here", workers=0)
    _same(here.table, on_ray.table)
