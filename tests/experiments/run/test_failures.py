"""What a user sees when a hospital, a strategy or a defence fails in a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

import clients.app
import clients.hospital as hospitals
from clients.hospital import LocalResult
from experiments.run.failures import failures_logged
from experiments.run.start import run
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.engine import guard
from fl_sim.errors import FlSimError
from fl_sim.faults import blaming
from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry
from tests.experiments.cli_kit import fl_sim

SCENARIO: dict[str, Any] = {
    "mode": "federated",
    "dataset": {"name": "phantoms", "size": 16, "train": 90, "validation": 40, "test": 40},
    "model": "cnn",
    "attack": {"name": "transpose", "images": 4, "memory_steps": 2},
    "data": {"public_images": 16},
    "measure": {"scratch_epochs": 0},
    "training": {"batch_size": 32},
    "threads": 1,
    "federation": {"hospitals": 3, "rounds": 2, "malicious": [0], "engine": "inprocess"},
}


class NoKeys(Settings):
    pass


class Raising(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == 2:
            raise KeyError("momentum")
        return super().aggregate_train(server_round, replies)


class Breaking(Defense[NoKeys]):
    Settings = NoKeys

    def apply(self, release: Release) -> DefenseReport:
        with torch.no_grad():
            next(release.model.parameters()).view(-1)[0] = float("nan")
        return DefenseReport()


class Leaving(Defense[NoKeys]):
    Settings = NoKeys

    def apply(self, release: Release) -> DefenseReport:
        sys.exit(0)


@pytest.fixture(autouse=True)
def _own_cache_and_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    for registry in (STRATEGIES, DEFENSES):  # forget them again
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    STRATEGIES.register("tests-raising", "raises")(StrategyEntry(NoKeys, lambda keys: Raising()))
    DEFENSES.register("tests-breaking", "makes NaN")(Breaking)
    DEFENSES.register("tests-leaving", "ends the program")(Leaving)


def _with(**parts: Any) -> dict[str, Any]:
    return {**SCENARIO, **parts}


def _federation(**keys: Any) -> dict[str, Any]:
    return {**SCENARIO["federation"], **keys}


def _hospital_1(monkeypatch: pytest.MonkeyPatch, change: Callable[[LocalResult], Any]) -> None:
    """Let hospital 1 do something when it has trained."""
    honest = hospitals.local_round

    def local_round(settings: Any, hospital: int, *rest: Any, **keys: Any) -> LocalResult:
        result = honest(settings, hospital, *rest, **keys)
        return (change(result) or result) if hospital == 1 else result

    monkeypatch.setattr(clients.app, "local_round", local_round)


def test_a_raising_strategy_is_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scenario = _with(federation=_federation(strategy="tests-raising"))
    with pytest.raises(FlSimError, match="Round 2: the strategy 'tests-raising' failed: KeyError"):
        run(scenario, tmp_path / "out")
    assert "Traceback" not in "".join(capfd.readouterr())
    log = (tmp_path / "out" / "failures.log").read_text()
    assert "Traceback" in log and "KeyError: 'momentum'" in log
    monkeypatch.setattr(Raising, "aggregate_train", FedAvg.aggregate_train)
    mended = run(scenario, tmp_path / "out").table
    assert sorted(mended["round"].unique()) == [1, 2]


@pytest.mark.parametrize(
    ("defense", "words"),
    [("tests-breaking", "NaN or infinite"), ("tests-leaving", "failed: SystemExit: 0")],
)
@pytest.mark.parametrize("mode", ["federated", "centralized"])
def test_a_failing_defence_is_named_and_nothing_is_released(
    tmp_path: Path, mode: str, defense: str, words: str
) -> None:
    scenario = _with(mode=mode, defense=defense)
    if mode == "centralized":
        del scenario["federation"]
    with pytest.raises(FlSimError, match=rf"(?i)the defence '{defense}'.*{words}") as caught:
        run(scenario, tmp_path / "out")
    assert str(caught.value).count("\n") == 0
    assert not list((tmp_path / "out" / "artifacts").glob("release*"))


def test_a_hospital_that_leaves_is_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _hospital_1(monkeypatch, lambda result: sys.exit(5))
    table = run(SCENARIO, tmp_path / "out").table
    said = capfd.readouterr().err
    for server_round in (1, 2):
        assert f"Round {server_round}: hospital 1 was left out: SystemExit: 5" in said
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "out" / "failures.log").read_text()
    failed = table[table["metric"] == "failed"]
    assert list(zip(failed["round"], failed["stage"], strict=True)) == [
        (1, "upload:1"),
        (2, "upload:1"),
    ]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"num-examples": 10**15}, "claims 1000000000000000 training images.*dealt 2[0-9]"),
        ({"seconds": None}, "lacks the metric 'seconds'"),
        ({"attacked": None}, "lacks the metric 'attacked'"),
    ],
)
def test_what_a_hospital_says_is_held_against_what_is_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    metrics: dict[str, Any],
    words: str,
) -> None:
    def change(result: LocalResult) -> LocalResult:
        said = {**result.metrics, **metrics}
        return LocalResult(result.state, {k: v for k, v in said.items() if v is not None})

    _hospital_1(monkeypatch, change)
    run(_with(federation=_federation(rounds=1)), tmp_path / "out")
    with pytest.raises(AssertionError, match=f"Round 1: hospital 1 was left out: .*{words}"):
        raise AssertionError(capfd.readouterr().err)


def test_a_late_hospital_is_named_with_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = guard._clock
    passed = [0.0]
    monkeypatch.setattr(guard, "_clock", lambda: clock() + passed[0])

    def change(result: LocalResult) -> None:
        passed[0] += 1e6

    _hospital_1(monkeypatch, change)
    table = run(_with(federation=_federation(round_timeout=5e5)), tmp_path / "out").table
    said = capfd.readouterr().err
    assert "Round 1: hospital 1 was left out: it was late" in said
    assert "Round 2: hospital 1 was left out: it was late" in said
    assert "hospital 0" not in said and "hospital 2" not in said
    hospitals = table[table["metric"] == "hospitals"]
    assert list(hospitals["value"]) == [2.0, 2.0]


@pytest.mark.parametrize("keys", [{"boost": 10.0}, {"boost": 10.0, "update_norm": "honest"}])
def test_a_boosted_attack_is_no_failure(tmp_path: Path, keys: dict[str, Any]) -> None:
    table = run(_with(federation=_federation(rounds=1, **keys)), tmp_path / "out").table
    assert "failed" not in set(table["metric"])
    assert not (tmp_path / "out" / "failures.log").exists()


def test_a_log_that_cannot_be_written_hides_no_sentence(tmp_path: Path) -> None:
    (tmp_path / "failures.log").mkdir()
    with (
        pytest.raises(FlSimError, match=r"^it failed: KeyError: 'x'\.$"),
        failures_logged(tmp_path),
        blaming("it"),
    ):
        raise KeyError("x")


def test_the_command_line_exits_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_plugin.py").write_text(
        "import sys\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "from fl_sim.settings import Settings\n"
        "from strategies.base import STRATEGIES, StrategyEntry\n"
        "class Leaving(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies): sys.exit(0)\n"
        "STRATEGIES.register('leaving', '')(StrategyEntry(Settings, lambda keys: Leaving()))\n"
    )
    (tmp_path / "s.toml").write_text(
        'mode = "federated"\n'
        'dataset = {name = "phantoms", size = 16, train = 90, validation = 40, test = 40}\n'
        'model = "cnn"\nplugins = ["tests_plugin"]\nattack = {name = "transpose", images = 4}\n'
        '[federation]\nhospitals = 3\nrounds = 1\nstrategy = "leaving"\nengine = "inprocess"\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done = fl_sim("run", "s.toml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Round 1: the strategy 'leaving' failed: SystemExit: 0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
