"""Membership as a measure of every stage of a run, where the scenario asks for it."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fl_sim
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from fl_sim.errors import FlSimError
from fl_sim.membership_inference import references as reference_models

LAKE: dict[str, Any] = {
    "mode": "centralized",
    "dataset": {"name": "phantoms", "train": 136, "validation": 40, "test": 80, "size": 16},
    "model": "mlp",
    "data": {"public_images": 16},
    "training": {"epochs": 30, "learning_rate": 2e-3},
    "measure": {"scratch_epochs": 0},
    "membership": {"name": "lira", "references": 4},
    "defense": {"name": "scratch", "epochs": 30},
}
UNION: dict[str, Any] = {
    **LAKE,
    "mode": "federated",
    "training": {"epochs": 2},
    "attack": None,
    "defense": None,
    "federation": {"hospitals": 3, "rounds": 2, "engine": "inprocess", "absent": [1]},
}


def _metrics(out: Path) -> pd.DataFrame:
    rows = pd.read_csv(out / "results.csv")
    return rows.pivot_table(index="stage", columns="metric", values="value", aggfunc="last")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lake")
    fl_sim.run({**LAKE, "attack": {"name": "transpose", "images": 4}}, out=out, progress=False)
    return out


def test_each_stage_has_it_and_what_never_saw_the_images_tells_nothing(lake: Path) -> None:
    table = _metrics(lake)
    assert table.loc["upload", "membership_auc"] > 0.65
    # What left was trained on the held-out images alone.
    chance = table.loc["release", "membership_auc"]
    assert abs(chance - 0.5) < 3 * table.loc["release", "membership_auc_error"]
    assert table.loc["release", "membership_auc[held-out]"] > chance + 0.1
    assert np.isnan(table.loc["upload", "membership_auc[held-out]"])
    assert (table["membership_auc_floor"] == 0.5).all()
    assert table["membership_tpr_at_1_percent_floor"].tolist() == pytest.approx([1 / 81] * 2)
    for attack in ("rmia, online", "rmia, offline", "lira, offline"):
        assert f"membership_auc[{attack}]" in table
    assert (table["membership_auc[lira, online]"] == table["membership_auc"]).all()


def test_members_are_the_training_images_and_the_others_the_test_images(lake: Path) -> None:
    table = _metrics(lake)
    records = pd.read_csv(lake / "membership" / "release.csv")
    assert (table["membership_members"] == records["member"].sum()).all()
    assert (table["membership_nonmembers"] == 80).all()
    assert table.loc["release", "membership_members[held-out]"] == 40
    assert (~records["member"]).sum() == 80


def test_what_it_says_of_images_is_for_their_owner_alone(lake: Path) -> None:
    path = lake / "membership" / "upload.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {"record", "patient", "risk"} <= set(pd.read_csv(path).columns)


def test_reference_models_are_those_of_every_defence_and_seed_with_the_same_images(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*told: object) -> None:
        raise AssertionError("a reference model was trained again")

    monkeypatch.setattr(reference_models, "train", refuse)
    fl_sim.run({**LAKE, "defense": "lwlrd"}, out=tmp_path, progress=False)
    assert _metrics(tmp_path).loc["release", "membership_auc"] > 0.5


def test_without_the_table_nothing_of_it_is_measured(tmp_path: Path) -> None:
    fl_sim.run({**LAKE, "membership": "none", "training": {"epochs": 1}}, out=tmp_path)
    assert not any("membership" in name for name in _metrics(tmp_path))
    assert not (tmp_path / "membership").exists()


def test_images_of_hospitals_that_take_no_part_are_no_members(tmp_path: Path) -> None:
    run = Run(Scenario.create(**UNION), tmp_path, None)
    fl_sim.run(UNION, out=tmp_path, progress=False)
    table = _metrics(tmp_path)
    whole = len(run.case.train)
    assert (table["membership_members"].dropna() < 0.75 * whole).all()
    assert {"aggregate", "release"} <= set(table["membership_auc"].dropna().index)


def test_a_scenario_that_cannot_be_measured_so_is_refused_at_once() -> None:
    for wrong, said in (
        ({"name": "lira", "references": 2}, "needs 4 reference models"),
        ({"references": 3}, "references"),
        ({"name": "lyra"}, "Did you mean 'lira'"),
        ({"shadows": 4}, "no key 'shadows'"),
    ):
        with pytest.raises(FlSimError, match=said):
            Scenario.create(**{**LAKE, "membership": wrong})
