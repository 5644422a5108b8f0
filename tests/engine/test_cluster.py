"""Ray's start in three attempts, and that nothing of a session outlives the program."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_sim.engine import cluster, reaper
from fl_sim.engine.cluster import ray_running, sweep_sessions
from fl_sim.errors import FlSimError

ROOT = str(Path(__file__).parents[2])

# A program with a session and what Ray has: a daemon that carries the mark, and one that has
# written over its environment but writes to the session's log.
DRIVER = """
import os, subprocess, sys, time
from fl_sim.engine import cluster
with cluster._session() as folder:
    marked = subprocess.Popen(["sleep", "60"])
    (folder / "ray").mkdir()
    with open(folder / "ray" / "log", "w") as log:
        writing = subprocess.Popen(["sleep", "60"], stdout=log, env={})
    print(folder, marked.pid, writing.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sessions that no other test or program uses."""
    monkeypatch.setattr(cluster, "_LONGEST", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    yield tmp_path


def _begin(place: Path) -> tuple["subprocess.Popen[str]", Path, list[int]]:
    driver = subprocess.Popen(
        [sys.executable, "-c", "import fl_sim.engine.cluster as c; c._LONGEST = 1000\n" + DRIVER],
        env={**os.environ, "PYTHONPATH": ROOT, "RAY_TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    folder, *processes = driver.stdout.readline().split()
    return driver, Path(folder), [int(process) for process in processes]


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait_until(condition: Any) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program_leaves_no_process_and_no_file(
    place: Path, number: signal.Signals
) -> None:
    driver, folder, processes = _begin(place)
    with open(folder / "ray" / "log") as log:
        reader = subprocess.Popen(["sleep", "60"], stdin=log)  # somebody who looks at the log
    try:
        assert all(map(_lives, processes)) and folder.exists()
        os.kill(driver.pid, number)  # not the group: its children are the watcher's to find
        assert driver.wait(60) == -number
        assert driver.stderr is not None
        assert "the same command continues" in driver.stderr.read()
        assert _wait_until(lambda: not folder.exists())
        assert not any(map(_lives, processes))
        assert not reaper.shared_memory_of(folder).exists()
        assert reader.poll() is None
    finally:
        reader.kill()


def test_what_is_killed_with_its_watcher_is_swept_by_the_next_start(place: Path) -> None:
    driver, folder, processes = _begin(place)
    sweep_sessions()
    assert folder.exists() and all(map(_lives, processes))  # one that lives is left alone
    watcher = next(number for number in _children(driver.pid) if b"reaper" in _command(number))
    os.kill(watcher, signal.SIGKILL)
    driver.kill()
    driver.wait(60)
    assert folder.exists() and any(map(_lives, processes))
    (place / "fl-sim-ray-other").symlink_to("/")
    (place / "fl-sim-ray-new").mkdir()  # its program is about to lock it
    sweep_sessions()
    assert not folder.exists() and not any(map(_lives, processes))
    assert (place / "fl-sim-ray-new").exists()


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += [int(entry)] if int(fields[1]) == parent else []
    return found


def _command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Ray whose first two starts fail; returns what it was started with."""
    import ray

    starts: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        starts.append(arguments)
        if len(starts) < 3:
            Path(arguments["_temp_dir"]).mkdir()
            raise RuntimeError("timed out") from TimeoutError("The node was too slow")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return starts


def test_ray_that_starts_slowly_is_started_three_times(
    place: Path, slow_ray: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    with ray_running(None, {"SOME": "value"}, num_cpus=1):
        assert os.environ["SOME"] == "value"
        (running,) = place.iterdir()  # nothing is left of those that failed
    said = capfd.readouterr().err.splitlines()
    assert len(slow_ray) == 3 and len(said) == 2
    assert "too slow" in said[0] and "2 of 3" in said[0] and "3 of 3" in said[1]
    assert len({start["_temp_dir"] for start in slow_ray}) == 3
    assert slow_ray[2]["num_cpus"] == 1 and slow_ray[2]["_temp_dir"].startswith(str(running))
    assert list(place.iterdir()) == [] and dict(os.environ) == before
    assert capfd.readouterr().err == ""  # nothing was killed


def test_ray_that_never_starts_is_one_sentence(
    place: Path, slow_ray: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "STARTS", 2)
    words = "could not be started: The node was too slow"
    with pytest.raises(FlSimError, match=words), ray_running(None, {}):
        pass
    assert list(place.iterdir()) == []


def test_a_cluster_that_cannot_be_joined_is_not_tried_again(
    slow_ray: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: (_ for _ in ()).throw(ConnectionError("no one")))
    words = "ray://head could not be joined: no one"
    with pytest.raises(FlSimError, match=words), ray_running("ray://head", {}):
        pass


@pytest.mark.parametrize(
    ("initialised", "received", "said", "status"),
    [
        (True, [], "Ray's raylet has died, and Ray with it", 2),
        (True, [signal.SIGTERM], "Interrupted", 128 + signal.SIGTERM),
        (False, [], None, None),  # Flower has shut it down
    ],
)
def test_a_daemon_that_dies_ends_the_run_in_words(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    initialised: bool,
    received: list[int],
    said: str | None,
    status: int | None,
) -> None:
    left: list[tuple[str, int]] = []
    monkeypatch.setattr("ray.is_initialized", lambda: initialised)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_UNWINDING_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "leave", lambda *end: left.append(end))
    with cluster._session() as folder:
        raylet = folder / "raylet"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", raylet)
        with open(folder / "log", "w") as log:
            daemon = subprocess.Popen([raylet, "60"], stdout=log)
        assert _wait_until(lambda: b"60" in _command(daemon.pid))
        with cluster._guarded(folder, received):
            time.sleep(3 * cluster._WATCH_SECONDS)
            assert left == []
            daemon.kill()
            _wait_until(lambda: bool(left) or said is None)
    daemon.wait(60)
    assert left[:1] == ([] if said is None else [(said, status)])
