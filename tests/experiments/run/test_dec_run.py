"""DEC through whole runs: the table's rows in both modes, other defences on one trained model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.run.result import Result
from experiments.run.start import run
from fl_sim.errors import FlSimError

CODEC = {"name": "factorized", "N": 8, "M": 8, "max_steps": 20, "validate_every": 20}
CENTRALIZED: dict[str, Any] = {
    "mode": "centralized",
    "dataset": "phantoms",
    "model": "cnn",
    "attack": {"name": "dec", "images": 12, "codec": "png", "carrier": "lsb"},
    "training": {"epochs": 1},
    "measure": {"scratch_epochs": 0},
    "data": {"train_images": 200, "test_images": 100, "images": 50},
    "threads": 1,
}
FEDERATED: dict[str, Any] = {
    **CENTRALIZED,
    "mode": "federated",
    "federation": {"hospitals": 3, "rounds": 2, "engine": "inprocess"},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "dec-run-cache"))


def _value(result: Result, stage: str, metric: str, **where: Any) -> float:
    table = result.table
    rows = table[(table["stage"] == stage) & (table["metric"] == metric)]
    for column, value in {"extraction": "-", **where}.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, (stage, metric, len(rows))
    return float(rows["value"].iloc[0])


def test_a_data_lake_lets_every_image_out_and_fine_tuning_stops_it(tmp_path: Path) -> None:
    result = run({**CENTRALIZED, "defense": {"name": "lwlrd", "epochs": 1}}, tmp_path)
    assert _value(result, "upload", "images_intact") == 12
    assert _value(result, "upload", "bit_error_rate") == 0
    assert _value(result, "upload", "ssim", extraction="raw") == 1
    assert _value(result, "release", "images_lost") == 12
    assert 0.3 < _value(result, "release", "bit_error_rate") < 0.6
    # The file keeps its size, and the task its worth.
    before, after = (
        _value(result, "upload", metric) for metric in ("file_bytes_before_embedding", "file_bytes")
    )
    assert before == after
    change = _value(result, "upload", "auc") - _value(result, "upload", "auc_before_embedding")
    assert abs(change) < 0.01
    assert _value(result, "upload", "payload_bytes") < _value(result, "upload", "capacity_bytes")
    assert _value(result, "upload", "images_written") == 12
    by_tensor = result.table["metric"].str.startswith("carrier_error[")
    assert set(result.table[by_tensor]["stage"]) == {"upload", "release"}


def test_entries_survive_fine_tuning_and_grow_the_file(tmp_path: Path) -> None:
    attack = {**CENTRALIZED["attack"], "carrier": "entries"}
    result = run(
        {**CENTRALIZED, "attack": attack, "defense": {"name": "lwlrd", "epochs": 1}}, tmp_path
    )
    assert _value(result, "release", "images_intact") == 12
    grown = _value(result, "upload", "file_bytes") - _value(
        result, "upload", "file_bytes_before_embedding"
    )
    assert grown >= _value(result, "upload", "payload_bytes")


def test_in_a_federation_averaging_destroys_low_bits_and_drops_entries(tmp_path: Path) -> None:
    for carrier, lost in (("lsb", 12), ("entries", 12)):
        attack = {**FEDERATED["attack"], "carrier": carrier}
        result = run({**FEDERATED, "attack": attack}, tmp_path / carrier)
        assert _value(result, "upload", "images_intact", round=2) == 12
        assert _value(result, "aggregate", "images_lost", round=2) == lost
        assert _value(result, "upload", "images_written", round=1) == 12


def test_boosting_does_not_touch_the_payload_and_other_rounds_are_honest(tmp_path: Path) -> None:
    federation = {**FEDERATED["federation"], "boost": 3.0, "malicious_rounds": [1]}
    result = run({**FEDERATED, "federation": federation}, tmp_path)
    assert _value(result, "upload", "images_intact", round=1) == 12
    assert _value(result, "upload", "images_lost", round=2) == 12
    # What arrives in the second round is compared with what was sent in the first.
    assert 0.3 < _value(result, "upload", "bit_error_rate", round=2) < 0.6


def test_values_report_their_error_and_intact_images(tmp_path: Path) -> None:
    attack = {
        "name": "dec",
        "images": 4,
        "codec": CODEC,
        "external": {"name": "phantoms", "seed": 9},
        "contents": "latents",
        "carrier": "frozen",
    }
    noise = {"name": "gaussian_noise", "sigma": 1e-4}
    result = run({**CENTRALIZED, "attack": attack, "defense": noise}, tmp_path)
    assert _value(result, "upload", "images_intact") == 4
    assert 0 < _value(result, "release", "value_error") < 0.05
    lost = _value(result, "release", "images_lost")
    intact, damaged = (_value(result, "release", f"images_{w}") for w in ("intact", "damaged"))
    assert (intact + damaged, lost) == (4, 0)


def test_other_defences_start_from_one_trained_model(tmp_path: Path) -> None:
    first = run({**CENTRALIZED, "defense": "none"}, tmp_path / "first")
    noise = {**CENTRALIZED, "defense": {"name": "gaussian_noise", "sigma": 0.0}}
    second = run(noise, tmp_path / "second", trained=first.out)
    assert torch.equal(second.originals, first.originals)
    assert _value(second, "upload", "auc") == _value(first, "upload", "auc")
    assert _value(second, "release", "images_intact") == 12
    alone = run(noise, tmp_path / "alone")
    columns = [c for c in alone.table.columns if c != "value"]
    timeless = [t.table[t.table["metric"] != "seconds"] for t in (second, alone)]
    left, right = (t.sort_values(columns).reset_index(drop=True) for t in timeless)
    assert left.equals(right)


def test_a_model_trained_otherwise_is_refused(tmp_path: Path) -> None:
    first = run({**CENTRALIZED, "defense": "none"}, tmp_path / "first")
    other = {**CENTRALIZED, "training": {"epochs": 2}}
    with pytest.raises(FlSimError, match="'training'"):
        run(other, tmp_path / "second", trained=first.out)
    with pytest.raises(FlSimError, match="no trained model"):
        run(CENTRALIZED, tmp_path / "third", trained=tmp_path)


def test_an_interrupted_run_compares_with_what_was_sent_before(tmp_path: Path) -> None:
    whole = run({**CENTRALIZED, "defense": {"name": "lwlrd", "epochs": 1}}, tmp_path / "whole")
    # As a run that was killed after its training: everything but the release and the end mark.
    again = tmp_path / "again"
    shutil.copytree(whole.out, again)
    (again / "finished").unlink()
    resumed = run({**CENTRALIZED, "defense": {"name": "lwlrd", "epochs": 1}}, again)
    for metric in ("bit_error_rate", "images_lost", "auc"):
        assert _value(resumed, "release", metric) == _value(whole, "release", metric)


def test_stolen_images_are_worth_training_on(tmp_path: Path) -> None:
    scenario = {**CENTRALIZED, "measure": {"scratch_epochs": 0, "usability_epochs": 3}}
    attack = {**CENTRALIZED["attack"], "images": 100}
    result = run({**scenario, "attack": attack}, tmp_path)
    stolen, raw, true, shuffled = (
        _value(result, "upload", f"auc_trained_on_{kind}")
        for kind in ("stolen", "stolen_raw", "originals", "shuffled")
    )
    assert stolen == raw == true  # lossless, so the very same images
    assert stolen > 0.5
    assert shuffled != true
    released = result.table.query("stage == 'release'")["metric"]
    trained = {m for m in released if m.startswith("auc_trained_on_")}
    assert trained == {"auc_trained_on_stolen", "auc_trained_on_stolen_raw"}


def test_half_precision_cannot_enter_a_federation(tmp_path: Path) -> None:
    attack = {
        **FEDERATED["attack"],
        "precision": "float16",
        "carrier": {"name": "lsb", "bits": 4},
    }
    result = run({**FEDERATED, "attack": attack}, tmp_path)
    assert _value(result, "upload:0", "failed", round=1) == 1
