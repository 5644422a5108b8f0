"""One run a folder: who comes second waits, what is damaged is named, nothing is left behind."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import experiments.run.running as running
from experiments.run.claim import LOCK, claimed
from experiments.run.folder import RunFolder, load_pictures
from experiments.run.measurer import Measurer
from experiments.run.result import Result
from experiments.run.start import run
from experiments.sweep.start import sweep
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.results import read_table
from tests.experiments.run_kit import BOTH, CENTRALIZED, FEDERATED, PowerCut, same


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Uninterrupted runs of both modes, which no test changes."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(place / "cache"))
        return {mode: run(scenario, place / mode) for mode, scenario in BOTH.items()}


def _cut(scenario: dict[str, Any], out: Path, stage: str, server_round: int) -> None:
    """Run until a stage has been measured, and no further."""
    original = Measurer.record

    def record(self: Measurer, current: int, name: str, models: Any, **more: Any) -> None:
        original(self, current, name, models, **more)
        if (current, name) == (server_round, stage):
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measurer, "record", record)
        with pytest.raises(PowerCut):
            run(scenario, out)


INTERRUPTED = {"centralized": ("release", 0), "federated": ("aggregate", 3)}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of interrupted runs of both modes, to be copied."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(place / "cache"))
        for mode, scenario in BOTH.items():
            _cut(scenario, place / mode, *INTERRUPTED[mode])
    return {mode: place / mode for mode in BOTH}


# Two at once.


@pytest.mark.parametrize("mode", BOTH)
def test_two_runs_in_one_folder_give_the_table_of_one(
    tmp_path: Path, whole: dict[str, Result], mode: str
) -> None:
    start = multiprocessing.get_context("fork").Process
    runs = [start(target=run, args=(BOTH[mode], tmp_path / "out")) for _ in range(3)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(120)
    assert [process.exitcode for process in runs] == [0, 0, 0]
    same(read_table(tmp_path / "out" / "results.csv"), whole[mode].table)
    same(read_table(tmp_path / "out" / "results.csv"), _parquet(tmp_path / "out"))


def _parquet(out: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(out / "results.parquet")


def test_the_second_says_whom_it_waits_for_and_finds_the_run_finished(
    tmp_path: Path, whole: dict[str, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with _elsewhere(lambda: run(CENTRALIZED, out)):
        assert len(run(CENTRALIZED, out).table) == len(whole["centralized"].table)
    said = capsys.readouterr().err
    assert said.count("waiting") == 1 and str(os.getpid()) in said
    assert len(read_table(out / "results.csv")) == len(whole["centralized"].table)


class _elsewhere:
    """A thread that holds a folder until another has had time to find out."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._holds = threading.Event()
        original = Measurer.record

        def record(study: Measurer, *arguments: Any, **more: Any) -> None:
            if not self._holds.is_set():
                self._holds.set()
                time.sleep(0.5)
            original(study, *arguments, **more)

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(Measurer, "record", record)
        self._thread = threading.Thread(target=work)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._holds.wait(60)

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        self._patch.undo()


def test_another_scenario_is_refused_at_once(tmp_path: Path) -> None:
    other = {**CENTRALIZED, "seed": 1}
    with _elsewhere(lambda: run(CENTRALIZED, tmp_path)), pytest.raises(FlSimError, match="give an"):
        run(other, tmp_path)


def test_a_run_within_a_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    class Again:
        def start(self, what: str, total: int) -> None:
            run(CENTRALIZED, tmp_path)

        step = finish = start

    with pytest.raises(FlSimError, match="this very thread"):
        run(CENTRALIZED, tmp_path, progress=Again())


HOLDER = """
import os, sys, time
from pathlib import Path
from experiments.run.claim import claimed
with claimed(Path(sys.argv[1]), "work"):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_frees_its_folder_though_its_children_live(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"holds\n"
    assert json.loads((tmp_path / LOCK).read_text())["process"] == holder.pid
    with pytest.raises(FlSimError, match="runs work"), claimed(tmp_path, "other work"):
        pass
    holder.kill()
    holder.wait(60)
    try:
        with claimed(tmp_path, "other work"):  # would be refused, or wait for ever
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_folder_that_nothing_came_of_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match=r"none\.npz"):
        run({**CENTRALIZED, "dataset": "none.npz"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with claimed(tmp_path / "mine", "work"):
        pass
    assert (tmp_path / "mine").exists()


GRID: dict[str, Any] = {
    "scenario": {**CENTRALIZED, "attack": "none"},
    "grid": {"defense": ["none", {"label": "lwlrd", "name": "lwlrd", "epochs": 1}]},
}


def test_two_sweeps_in_one_folder_give_the_table_of_one(tmp_path: Path) -> None:
    alone = sweep(GRID, tmp_path / "alone", workers=0)
    shutil.rmtree(tmp_path / "cache")
    start = multiprocessing.get_context("fork").Process
    arguments = [(GRID, tmp_path / name, 0) for name in ("out", "out", "beside")]  # one cache
    sweeps = [start(target=sweep, args=one) for one in arguments]
    for process in sweeps:
        process.start()
    for process in sweeps:
        process.join(120)
    assert [process.exitcode for process in sweeps] == [0, 0, 0]
    for name in ("out", "beside"):
        again = sweep(GRID, tmp_path / name, workers=0)
        same(again.table, alone.table)
        assert len(json.loads((tmp_path / name / "sweep.json").read_text())["sessions"]) == 1


# What a resumed run stands on.


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def _shorten(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 3]))


def _edit(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join([*lines[:2], lines[2].replace(b",phantoms,", b",other,"), *lines[3:]])
    )


def _row_of_two_columns(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"a,b\n", *lines[3:]]))


def _deep(path: Path) -> None:
    path.write_text('{"identity": ' + "[" * 100_000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


TABLES = [("results.csv", damage) for damage in (Path.unlink, _shorten, _edit, _row_of_two_columns)]
DAMAGES: dict[str, list[tuple[str, Callable[[Path], Any]]]] = {
    "centralized": [
        *TABLES,
        ("trained", _empty),
        ("scenario.json", _empty),
        ("scenario.json", _deep),
        ("artifacts/upload.safetensors", _flip),
        ("artifacts/upload.safetensors", Path.unlink),
        ("images/recovered.safetensors", _flip),
    ],
    "federated": [
        *TABLES,
        ("checkpoint.safetensors", _flip),
        ("checkpoint.safetensors", _empty),
        ("scenario.json", _deep),
        ("defense.jsonl", Path.unlink),
        ("defense.jsonl", _empty),
        ("images/recovered.safetensors", Path.unlink),
        ("images/recovered.safetensors", _flip),
    ],
}


@pytest.mark.parametrize(
    ("mode", "name", "damage"),
    [(mode, *one) for mode, damages in DAMAGES.items() for one in damages],
)
def test_what_is_damaged_is_named_and_nothing_is_called_finished(
    tmp_path: Path,
    interrupted: dict[str, Path],
    mode: str,
    name: str,
    damage: Callable[[Path], Any],
) -> None:
    out = tmp_path / "out"
    shutil.copytree(interrupted[mode], out)
    damage(out / name)
    for _ in range(2):  # and the second time not otherwise
        with pytest.raises(FlSimError) as caught:
            run(BOTH[mode], out)
        assert str(out / name) in str(caught.value) and "begin anew" in str(caught.value)
        assert not (out / "finished").exists()


@pytest.mark.parametrize("mode", BOTH)
def test_begun_anew_as_the_sentence_says_it_gives_its_table(
    tmp_path: Path, interrupted: dict[str, Path], whole: dict[str, Result], mode: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(interrupted[mode], out)
    _flip(out / "images/recovered.safetensors")
    with pytest.raises(FlSimError, match="begin anew"):
        run(BOTH[mode], out)
    shutil.rmtree(out)
    same(run(BOTH[mode], out).table, whole[mode].table)


@pytest.mark.parametrize("damage", [Path.unlink, _shorten, _edit])
def test_a_finished_run_whose_rows_are_gone_is_not_called_finished(
    tmp_path: Path, whole: dict[str, Result], damage: Callable[[Path], Any]
) -> None:
    shutil.copytree(whole["federated"].out, tmp_path / "out")
    damage(tmp_path / "out" / "results.csv")
    with pytest.raises(FlSimError, match=r"results\.csv is missing or not as"):
        run(FEDERATED, tmp_path / "out")


def test_a_run_whose_end_mark_is_gone_ends_again(tmp_path: Path, whole: dict[str, Result]) -> None:
    for mode, scenario in BOTH.items():
        shutil.copytree(whole[mode].out, tmp_path / mode)
        (tmp_path / mode / "finished").unlink()
        same(run(scenario, tmp_path / mode).table, whole[mode].table)


def test_data_that_changed_meanwhile_are_refused(
    tmp_path: Path, interrupted: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from fl_sim.case import open_case
    from fl_sim.data.base import DataFile

    def other(*arguments: Any) -> Any:
        file = DataFile("phantoms.npz", "0" * 64, None)
        return dataclasses.replace(open_case(*arguments), files=(file,))

    shutil.copytree(interrupted["centralized"], tmp_path / "out")
    monkeypatch.setattr(running, "open_case", other)
    with pytest.raises(FlSimError, match=r"phantoms\.npz is not the one"):
        run(CENTRALIZED, tmp_path / "out")


def test_a_sweep_names_a_damaged_cell_and_runs_the_rest(tmp_path: Path) -> None:
    whole = sweep(GRID, tmp_path, workers=0)
    broken, other = (cell.name for cell in whole.grid.cells)
    _shorten(tmp_path / "cells" / broken / "results.csv")
    (tmp_path / "jobs" / f"{other}.json").write_text("{")  # only a note of what the folder proves
    (tmp_path / "sweep.json").write_text("[")
    again = sweep(GRID, tmp_path, workers=0)
    assert list(again.failed["cell"]) == [broken]
    assert "results.csv" in again.failed["error"].iloc[0]
    assert set(again.table["cell"]) == {other}
    shutil.rmtree(tmp_path / "cells" / broken)
    same(sweep(GRID, tmp_path, workers=0).table, whole.table)


# What an interrupted run leaves.


@pytest.mark.parametrize("mode", BOTH)
def test_a_resumed_picture_is_the_uninterrupted_one(
    tmp_path: Path, interrupted: dict[str, Path], whole: dict[str, Result], mode: str
) -> None:
    shutil.copytree(interrupted[mode], tmp_path / "out")
    resumed = run(BOTH[mode], tmp_path / "out")
    same(resumed.table, whole[mode].table)
    assert checksum(resumed.picture) == checksum(whole[mode].picture)
    # Not the order of the alphabet, which a safetensors file would give.
    assert checksum(resumed.out / "images/recovered.safetensors") == checksum(
        whole[mode].out / "images/recovered.safetensors"
    )
    assert len(load_pictures(resumed.out)) == len(load_pictures(whole[mode].out)) > 4


def test_temporary_files_of_killed_runs_are_swept(
    tmp_path: Path, interrupted: dict[str, Path]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(interrupted["federated"], out)
    left = [out / ".results.csv.1.2", out / "images" / ".recovered.png.345.140000"]
    kept = out / "notes.1.2"
    for path in (*left, kept):
        path.write_text("half")
    run(FEDERATED, out)
    assert not any(path.exists() for path in left) and kept.exists()
    swept = sweep(GRID, tmp_path / "sweep", workers=0).out
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    left = [place / f".x.json.{ended.pid}.2" for place in (swept, swept / "jobs")]
    for path in left:
        path.write_text("half")
    sweep(GRID, swept, workers=0)
    assert not any(path.exists() for path in left)


def test_files_that_are_not_kept_go_after_the_end_mark_and_a_kill_between_is_no_harm(
    tmp_path: Path, whole: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = {**CENTRALIZED, "measure": {**CENTRALIZED["measure"], "keep": "release"}}

    def cut(self: RunFolder) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "tidy", cut)
        with pytest.raises(PowerCut):
            run(scenario, tmp_path)
    assert (tmp_path / "artifacts" / "upload.safetensors").exists()
    same(run(scenario, tmp_path).table, whole["centralized"].table)
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == ["release.safetensors"]


# The disk, and signals.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a run."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("mode", BOTH)
def test_a_full_disk_is_one_sentence_and_with_room_the_run_continues(
    small_disk: Path, whole: dict[str, Result], mode: str
) -> None:
    with pytest.raises(FlSimError, match="the disk is full"):
        run(BOTH[mode], small_disk / "out")
    assert not list(small_disk.rglob(".*[0-9]"))
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    same(run(BOTH[mode], small_disk / "out").table, whole[mode].table)


TOML = """
mode = "centralized"
dataset = {name = "phantoms", size = 8, train = 60, validation = 30, test = 30}
model = "cnn"
threads = 1
attack = {name = "transpose", images = 4}
defense = {name = "lwlrd", epochs = 1}
data = {public_images = 12}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 2000}
"""


def _begin(place: Path, *prefix: str) -> "subprocess.Popen[str]":
    (place / "s.toml").write_text(TOML)
    command = [sys.executable, "-m", "experiments.cli.main", "run", "s.toml", "--out", "out"]
    program = subprocess.Popen(
        [*prefix, *command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (place / "out" / "keys").exists() and program.poll() is None:
        time.sleep(0.05)
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_program_end_like_ctrl_c(tmp_path: Path, number: signal.Signals) -> None:
    program = _begin(tmp_path)
    program.send_signal(number)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert "the same command continues" in said and "Traceback" not in said


def test_under_nohup_a_hangup_is_no_end(tmp_path: Path) -> None:
    program = _begin(tmp_path, "nohup")
    program.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert program.poll() is None
    program.terminate()
    assert program.wait(60) == 128 + signal.SIGTERM


def test_a_place_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TOML)
    (tmp_path / "out").write_text("a file, not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli.main", "run", "s.toml", "--out", "out/a"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "out/a" in done.stderr
