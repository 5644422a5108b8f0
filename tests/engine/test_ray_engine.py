import logging
import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from clients.app import client_app
from fl_sim.engine import EngineSettings, guard, run
from fl_sim.engine import ray as ray_engine
from fl_sim.engine.ray import backend_config, hospitals_at_once
from fl_sim.engine.records import from_record, to_record
from fl_sim.engine.watched import WatchedGrid
from tests.engine.federation_kit import (
    LATE,
    Recorder,
    Steps,
    halve,
    initial,
    same,
    settings,
    strategy,
)
from tests.engine.flower_kit import ROOT, flower


def test_resources_are_given_in_full():
    config = backend_config(EngineSettings(cpus_per_hospital=0.5, gpus_per_hospital=0.25))
    assert config["client_resources"]["num_cpus"] == 0.5
    assert config["client_resources"]["num_gpus"] == 0.25


def test_before_ray_is_there_one_hospital_is_counted_on():
    assert hospitals_at_once(EngineSettings()) == 1


def test_hospitals_compute_where_gpus_are_given():
    assert EngineSettings().device == "cpu"
    assert EngineSettings(gpus_per_hospital=0.5).device == "cuda"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_a_program_answers_stop_the_servers_side(monkeypatch, number):
    left, stop = [], threading.Event()
    monkeypatch.setattr(ray_engine, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(ray_engine, "leave", lambda *end: left.append(end))
    before = signal.signal(number, lambda *_: None)
    own = signal.getsignal(number)
    try:
        with ray_engine._interruptible(stop) as received:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set() and received == [number]
            while not left and number != signal.SIGINT:  # Ctrl-C waits for as long as it takes
                time.sleep(0.01)
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)
    assert left == ([] if number == signal.SIGINT else [("Interrupted", 128 + number)])


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals_that_are_ignored_or_end_a_program_at_once_do_so_still(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with ray_engine._interruptible(threading.Event()):
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_numbers_bit_for_bit(capfd, monkeypatch):
    """Honest, malicious, failing, leaving and late hospitals, a cohort, a defence and an
    optimiser's state."""
    monkeypatch.setattr(guard, "_clock", guard._clock)
    federation = settings(hospitals=5, attack="fake-attack", boost=2.0, rounds=2)
    broken = settings(hospitals=5, attack="broken-attack", malicious=(3,), rounds=3)
    leaving = settings(hospitals=5, attack="leaving-attack", malicious=(0, 1), rounds=1)
    late = settings(hospitals=5, attack="late-attack", malicious=(2,), rounds=1)

    def main(recorders, steps):
        def serve(grid):
            first = strategy(recorders[0], federation, "fedadam", cohort=3, release=halve)
            first.start(WatchedGrid(grid, steps), to_record(initial()), 2)
            strategy(recorders[1], leaving).start(grid, to_record(initial()), 1)
            strategy(recorders[2], late).start(grid, to_record(initial()), 1, timeout=LATE / 2)
            last = strategy(recorders[3], broken)
            return from_record(last.start(grid, to_record(initial()), 1).arrays)

        return serve

    kept = ("PYTHONPATH", "PYTHONBREAKPOINT", "OMP_NUM_THREADS")
    environment, level = [os.environ.get(name) for name in kept], logging.getLogger("flwr").level
    results, recorders, steps = {}, {}, {}
    for engine in ("inprocess", "ray"):
        recorders[engine], steps[engine] = [Recorder() for _ in range(4)], Steps()
        chosen = EngineSettings(engine=engine)
        results[engine] = run(chosen, main(recorders[engine], steps[engine]), client_app, 5)
    assert same(results["ray"], results["inprocess"])
    for mine, theirs in zip(recorders["ray"], recorders["inprocess"], strict=True):
        assert mine.failures.keys() == theirs.failures.keys()
        for stage in ("uploads", "aggregates", "releases"):
            left, right = getattr(mine, stage), getattr(theirs, stage)
            assert left.keys() == right.keys()
            assert all(same(left[key], right[key]) for key in left)
    assert (
        steps["ray"].said == steps["inprocess"].said == 2 * [("hospitals back", 3), 1, 1, 1, "end"]
    )
    for _, left, slow, failed in recorders.values():
        assert left.failures == {(1, 0): "SystemExit: 7", (1, 1): "SystemExit: 7"}
        assert list(slow.failures) == [(1, 2)] and "late" in slow.failures[1, 2]
        assert failed.failures == {(1, 3): "RuntimeError: the scanner is on fire"}
    assert [os.environ.get(name) for name in kept] == environment
    assert logging.getLogger("flwr").level == level
    assert "deprecated" not in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_flowers_own_command_runs_an_app_with_a_defence(tmp_path):
    """The quickstart app from its folder, offline; Flower runs a copy of it elsewhere."""
    app, out = ROOT / "experiments/examples/flower_quickstart", tmp_path / "cleaned.pt"
    with flower(tmp_path / "home") as environment:
        done = subprocess.run(
            [
                "flwr",
                "run",
                str(app),
                "--stream",
                "--federation-config",
                "num-supernodes=2",
                "-c",
                f'rounds=1 out="{out}"',
            ],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("Defended: lwlrd on 300 held-out images") == 1
    assert "Received 2 results and 0 failures" in said
    state = torch.load(out, weights_only=True)
    assert state["features.1.num_batches_tracked"].dtype == torch.int64
