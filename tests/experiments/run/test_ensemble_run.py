"""Ensemble distillation in whole runs: rows of its caps and epsilons, engines, and data lakes."""

import math
from pathlib import Path
from typing import Any

import pytest

from experiments.run.result import Result
from experiments.run.scenario import Scenario
from experiments.run.start import run
from fl_sim.defenses.ensemble_distillation import EnsembleDistillation
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.privacy import gaussian_epsilon
from tests.experiments.run_kit import CENTRALIZED, FEDERATED, same

PATE = {"name": "ensemble_distillation", "combine": "vote", "noise": 3.0, "steps": 2}
CLASSES = 4  # of the phantoms
NOISED = 30 / 3.0**2  # 30 held-out images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))


def _scenario(defense: Any, **federation: Any) -> dict[str, Any]:
    return {
        **FEDERATED,
        "defense": defense,
        "measure": {"scratch_epochs": 0},
        "federation": {**FEDERATED["federation"], **federation},
    }


def _rows(result: Result, metric: str) -> dict[int, float]:
    table = result.table
    rows = table[(table["metric"] == metric) & (table["stage"] == "release")]
    return dict(zip(rows["round"], rows["value"], strict=True))


def test_every_round_adds_to_the_epsilon(tmp_path: Path) -> None:
    result = run(_scenario(PATE), tmp_path / "out", progress=False)
    one = gaussian_epsilon(NOISED, 1e-5)
    assert _rows(result, "pate_epsilon") == pytest.approx({1: one, 2: one, 3: one})
    total = {r: gaussian_epsilon(r * NOISED, 1e-5) for r in (1, 2, 3)}
    assert _rows(result, "pate_epsilon_total") == pytest.approx(total)
    cap = 30 * math.log2(CLASSES) / 8
    assert _rows(result, "cap_bytes") == pytest.approx({1: cap, 2: cap, 3: cap})
    assert _rows(result, "cap_bytes_of_one") == pytest.approx({1: cap, 2: cap, 3: cap})


def test_a_release_that_left_as_it_was_promises_nothing(tmp_path: Path) -> None:
    result = run(_scenario(PATE, defend=2), tmp_path / "out", progress=False)
    assert _rows(result, "pate_epsilon_total") == {2: math.inf, 3: math.inf}
    assert len(_rows(result, "pate_epsilon")) == 2


def test_a_run_that_goes_on_knows_what_was_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(_scenario(PATE), tmp_path / "whole", progress=False)
    usual = EnsembleDistillation.apply

    def cut(self: Any, release: Any) -> Any:
        if release.stream.path[-1] == 3:
            raise RuntimeError("the power is gone")
        return usual(self, release)

    monkeypatch.setattr(EnsembleDistillation, "apply", cut)
    with pytest.raises(FlSimError, match="the power is gone"):
        run(_scenario(PATE), tmp_path / "cut", progress=False)
    monkeypatch.setattr(EnsembleDistillation, "apply", usual)
    same(run(_scenario(PATE), tmp_path / "cut", progress=False).table, whole.table)


@pytest.mark.ray
def test_ray_gives_the_same_table_as_the_process_itself(tmp_path: Path) -> None:
    median = {"name": "ensemble_distillation", "steps": 2}
    here = run(_scenario(median, rounds=2), tmp_path / "here", progress=False)
    there = run(_scenario(median, rounds=2, engine="ray"), tmp_path / "there", progress=False)
    same(here.table, there.table)
    assert checksum(here.artifact) == checksum(there.artifact)


@pytest.mark.parametrize("defense", [PATE, {"name": "chain", "steps": [PATE]}])
def test_a_data_lake_has_no_ensemble(defense: Any) -> None:
    with pytest.raises(FlSimError, match=r"a data lake has one model; set mode = .federated."):
        Scenario.create(**{**CENTRALIZED, "defense": defense})
    assert Scenario.create(**_scenario(defense)).make_defense() is not None
