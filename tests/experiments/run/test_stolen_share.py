"""A data lake from which the images of one hospital are stolen, those that a federation loses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clients.hospital import hospital_plan
from experiments.run.adopt import adopt_trained
from experiments.run.centralized import plan_attack
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from fl_sim.errors import FlSimError

BASE: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 8, "train": 120, "validation": 40, "test": 40},
    "model": "cnn",
    "attack": {"name": "transpose", "images": 6},
    "data": {"public_images": 12},
    "seed": 3,
}
SHARE = {"hospitals": 3, "number": 1, "scheme": "dirichlet", "alpha": 0.3}


def _lake(**attacker: Any) -> Scenario:
    return Scenario.create(**BASE, mode="centralized", attacker=attacker)


@pytest.mark.parametrize("scheme", [{"scheme": "iid"}, {"scheme": "dirichlet", "alpha": 0.3}])
def test_lake_and_federation_lose_the_very_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: dict[str, Any]
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    lake = _lake(hospital={"hospitals": 3, "number": 1, **scheme})
    federation = {"hospitals": 3, "malicious": [1], "partition": scheme}
    federated = Scenario.create(**BASE, mode="federated", federation=federation)
    data, theirs = hospital_plan(federated.hospital_settings(None), 1)
    study = Run(lake, tmp_path / "run", None)
    ours = plan_attack(study, lake.make_attack())
    assert ours is not None
    assert torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.key.tensors["codes"], theirs.key.tensors["codes"])
    # The plan's numbers are those of the lake, where the labels are looked up.
    pixels, labels = study.case.train.batch(ours.indices)
    assert torch.equal(pixels, ours.targets)
    assert labels.tolist() == data.labels[theirs.indices].tolist()


def test_only_scenarios_that_name_a_hospital_have_another_identity() -> None:
    whole = _lake()
    assert _lake(search=False).identity == whole.identity
    assert _lake(hospital=SHARE).identity != whole.identity
    assert _lake(hospital={**SHARE, "number": 0}).identity != _lake(hospital=SHARE).identity


def test_impossible_shares_are_one_sentence() -> None:
    with pytest.raises(FlSimError, match="number is 3, but 3 hospitals"):
        _lake(hospital={"hospitals": 3, "number": 3})
    with pytest.raises(FlSimError, match=r"\[attacker\] hospital is for a data lake"):
        Scenario.create(**BASE, mode="federated", attacker={"hospital": SHARE})


def test_a_model_attacked_for_another_hospital_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    first = Run(_lake(hospital=SHARE), tmp_path / "first", None)
    (first.out / "trained").touch()
    other = Run(_lake(hospital={**SHARE, "number": 0}), tmp_path / "other", None)
    with pytest.raises(FlSimError, match=r"differs from this scenario in 'attacker\.hospital'"):
        adopt_trained(other, first.out)
