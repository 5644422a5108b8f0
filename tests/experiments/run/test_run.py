"""Whole runs on small phantoms: what they write, that they repeat, and that they resume."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.run.measurer import Measurer
from experiments.run.result import Result
from experiments.run.running import Run
from experiments.run.start import run
from experiments.tables.pictures import write_images
from fl_sim.artifact import read_artifact
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.files import checksum
from fl_sim.results import COLUMNS, without_timings
from tests.experiments.run_kit import BOTH, CENTRALIZED, PowerCut

FEDERATED = {**BOTH["federated"], "federation": {**BOTH["federated"]["federation"], "hospitals": 3}}
SCENARIOS = {"centralized": CENTRALIZED, "federated": FEDERATED}


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
        return {mode: run(scenario, place / mode) for mode, scenario in SCENARIOS.items()}


def _changed(scenario: dict[str, Any], **parts: Any) -> dict[str, Any]:
    new = dict(scenario)
    for key, value in parts.items():
        new[key] = {**new.get(key, {}), **value} if isinstance(value, dict) else value
    return new


def _stages(table: pd.DataFrame) -> set[tuple[int, str]]:
    return set(zip(table["round"], table["stage"], strict=True))


def test_a_centralized_run_writes_everything_it_promises(whole: dict[str, Result]) -> None:
    result = whole["centralized"]
    files = {str(p.relative_to(result.out)) for p in result.out.rglob("*") if p.is_file()}
    assert {
        "results.csv",
        "results.parquet",
        "scenario.json",
        "defense.jsonl",
        "artifacts/upload.safetensors",
        "artifacts/release.safetensors",
        "keys/hospital-0.safetensors",
        "images/recovered.png",
    } <= files
    table = result.table
    assert tuple(table.columns) == COLUMNS
    assert _stages(table) == {(0, "upload"), (0, "release")}
    metrics = set(table["metric"])
    assert {
        "ssim",
        "psnr",
        "identification_distance",
        "identification_correlation",
        "identification_chance",
        "ssim_floor_mean",
        "ssim_floor_random",
        "auc",
        "auc_floor_scratch",
        "accuracy",
        "balanced_accuracy",
        "seconds",
    } <= metrics
    assert {"raw", "affine", "strongest"} <= set(table["extraction"])
    pd.testing.assert_frame_equal(table, pd.read_parquet(result.out / "results.parquet"))
    noted = json.loads((result.out / "scenario.json").read_text())
    assert noted["scenario"]["training"]["optimizer"] == "adam"  # the default
    assert noted["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result.artifact == result.out / "artifacts/release.safetensors"
    assert result.recovered["release/affine"].shape == result.originals.shape == (4, 3, 8, 8)


def test_what_is_measured_is_what_the_files_give(tmp_path: Path, whole: dict[str, Result]) -> None:
    result = whole["centralized"]
    images = extract(result.artifact, result.out / "keys/hospital-0.safetensors").images
    torch.testing.assert_close(images.clamp(0, 1), result.recovered["release/raw"])
    released = read_artifact(result.artifact).state
    uploaded = read_artifact(result.out / "artifacts/upload.safetensors").state
    assert not torch.equal(released["0.weight"], uploaded["0.weight"])
    write_images(tmp_path / "png", images)
    assert len(list((tmp_path / "png").glob("*.png"))) == 4


def test_the_attackers_public_images_and_the_test_set_are_not_stolen(tmp_path: Path) -> None:
    study = Run(_scenario(CENTRALIZED), tmp_path / "out", None)
    dataset = load_dataset("phantoms", study.scenario.dataset.settings)
    train = {image.tobytes() for image in study.case.train.images}
    assert len(train) + len(study.case.public) == len(dataset.train)
    for other in (study.case.public, study.case.held_out, study.case.test):
        assert not train & {image.tobytes() for image in other.images}


def _scenario(values: dict[str, Any]) -> Any:
    from experiments.run.scenario import Scenario

    return Scenario.from_mapping(values)


@pytest.mark.parametrize("mode", SCENARIOS)
def test_the_same_scenario_gives_the_same_table_and_another_seed_another(
    tmp_path: Path, whole: dict[str, Result], mode: str
) -> None:
    one = whole[mode]
    two = run(SCENARIOS[mode], tmp_path / "two")
    other = run(_changed(SCENARIOS[mode], seed=1), tmp_path / "other")
    pd.testing.assert_frame_equal(without_timings(one.table), without_timings(two.table))
    assert checksum(one.artifact) == checksum(two.artifact) != checksum(other.artifact)
    assert set(one.table["scenario"]) == set(other.table["scenario"])


def _cut(monkeypatch: pytest.MonkeyPatch, stage: str, server_round: int) -> None:
    original = Measurer.record

    def record(self: Measurer, current: int, name: str, models: Any, **more: Any) -> None:
        original(self, current, name, models, **more)
        if (current, name) == (server_round, stage):
            raise PowerCut

    monkeypatch.setattr(Measurer, "record", record)


@pytest.mark.parametrize(
    ("mode", "stage", "server_round", "strategy"),
    [
        ("centralized", "upload", 0, None),
        ("centralized", "release", 0, None),
        ("federated", "upload", 1, None),
        ("federated", "aggregate", 2, None),
        ("federated", "release", 3, None),
        ("federated", "release", 2, "fedadam"),
    ],
)
def test_an_interrupted_run_continues_to_the_same_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Result],
    mode: str,
    stage: str,
    server_round: int,
    strategy: str | None,
) -> None:
    scenario, uncut = SCENARIOS[mode], whole[mode]
    if strategy is not None:
        scenario = _changed(scenario, federation={"strategy": strategy})
        uncut = run(scenario, tmp_path / "whole")
    with monkeypatch.context() as patch:
        _cut(patch, stage, server_round)
        with pytest.raises(PowerCut):
            run(scenario, tmp_path / "cut")
    resumed = run(scenario, tmp_path / "cut")
    pd.testing.assert_frame_equal(without_timings(uncut.table), without_timings(resumed.table))
    assert checksum(uncut.artifact) == checksum(resumed.artifact)
    assert resumed.picture.exists()
    assert _reported_rounds(resumed.out) == _reported_rounds(uncut.out)


def _reported_rounds(out: Path) -> list[int]:
    lines = (out / "defense.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines]


def test_a_finished_run_is_not_run_again(tmp_path: Path, whole: dict[str, Result]) -> None:
    out = shutil.copytree(whole["centralized"].out, tmp_path / "out")
    before = {p: os.stat(p).st_mtime_ns for p in out.rglob("[!.]*")}
    assert len(before) > 8
    second = run(CENTRALIZED, out)
    assert {p: os.stat(p).st_mtime_ns for p in second.out.rglob("[!.]*")} == before


def test_a_folder_of_another_scenario_is_refused(whole: dict[str, Result]) -> None:
    with pytest.raises(FlSimError, match="holds the run of another scenario"):
        run(_changed(CENTRALIZED, attack={"images": 5}), whole["centralized"].out)


def test_a_federation_is_measured_at_every_stage_of_every_round(whole: dict[str, Result]) -> None:
    result = whole["federated"]
    rounds = {(r, s) for r in (1, 2, 3) for s in ("upload", "aggregate", "release")}
    assert _stages(result.table) == rounds
    leaks = result.table[result.table["metric"] == "ssim"]
    assert _stages(leaks) == rounds
    assert set(result.table["clients"]) == {3} and set(result.table["aggregator"]) == {"fedavg"}


def test_only_measured_rounds_are_measured(tmp_path: Path) -> None:
    result = run(_changed(FEDERATED, measure={"every": 2}), tmp_path / "out")
    leaks = result.table[result.table["metric"] == "ssim"]
    assert set(leaks["round"]) == {2, 3}


def test_several_attackers_have_rows_each_and_their_mean(tmp_path: Path) -> None:
    result = run(_changed(FEDERATED, federation={"malicious": [0, 2], "rounds": 1}), tmp_path / "o")
    table = result.table[(result.table["metric"] == "ssim") & (result.table["extraction"] == "raw")]
    value = table.set_index("stage")["value"]
    for stage in ("upload", "aggregate", "release"):
        each = (value[f"{stage}:0"], value[f"{stage}:2"])
        assert value[stage] == pytest.approx(sum(each) / 2)
    assert len(list((result.out / "keys").iterdir())) == 2


def test_an_undefended_release_is_the_aggregate(tmp_path: Path) -> None:
    result = run(_changed(FEDERATED, defense="none", federation={"rounds": 1}), tmp_path / "out")
    folder = result.out / "artifacts"
    assert checksum(folder / "aggregate.safetensors") == checksum(folder / "release.safetensors")


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_an_honest_run_has_utility_and_no_leakage(tmp_path: Path, scenario: dict[str, Any]) -> None:
    result = run(_changed(scenario, attack="none"), tmp_path / "out")
    assert "ssim" not in set(result.table["metric"]) and "auc" in set(result.table["metric"])
    assert not result.picture.exists() and result.recovered == {}


def test_a_failing_hospital_is_reported_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Hospital 1 alone has fewer images than it is to steal.
    scenario = _changed(
        FEDERATED,
        attack={"images": 2},
        federation={"rounds": 1, "malicious": [0]},
        plugins=["tests_failing_plugin"],
    )
    plugin = tmp_path / "tests_failing_plugin.py"
    plugin.write_text(
        "import clients.hospital as h\n"
        "old = h.local_round\n"
        "def local_round(settings, hospital, *a, **k):\n"
        "    if hospital == 1: raise h.FlSimError('The disk is full.')\n"
        "    return old(settings, hospital, *a, **k)\n"
        "import clients.app\n"
        "clients.app.local_round = local_round\n"
    )
    import sys

    import clients.app
    from clients.hospital import local_round

    sys.path.insert(0, str(tmp_path))
    try:
        result = run(scenario, tmp_path / "out")
    finally:
        sys.path.remove(str(tmp_path))
        clients.app.local_round = local_round  # type: ignore[attr-defined]
    assert "hospital 1 was left out" in capsys.readouterr().err
    failed = result.table[result.table["metric"] == "failed"]
    assert list(failed["stage"]) == ["upload:1"]
    hospitals = result.table[result.table["metric"] == "hospitals"]
    assert list(hospitals["value"]) == [2.0]


@pytest.mark.ray
def test_ray_gives_the_same_table_as_the_process_itself(tmp_path: Path) -> None:
    scenario = _changed(FEDERATED, federation={"rounds": 2})
    here = run(scenario, tmp_path / "here")
    there = run(_changed(scenario, federation={"rounds": 2, "engine": "ray"}), tmp_path / "there")
    pd.testing.assert_frame_equal(without_timings(here.table), without_timings(there.table))
    assert checksum(here.artifact) == checksum(there.artifact)


def test_an_honest_federation_reaches_pooled_training_on_real_data(tmp_path: Path) -> None:
    root = os.environ.get("FL_SIM_DATA")
    if not root:
        pytest.skip("set FL_SIM_DATA to a folder with pneumoniamnist.npz")
    honest: dict[str, Any] = {
        "dataset": "pneumoniamnist",
        "model": "cnn",
        "data": {"train_images": 1200},
        "measure": {"scratch_epochs": 0, "every": 99},
        "training": {"epochs": 1, "batch_size": 32},
        "threads": 1,
    }
    pooled = run(
        {**honest, "mode": "centralized", "training": {"epochs": 4, "batch_size": 32}},
        tmp_path / "pooled",
    )
    federated = run(
        {
            **honest,
            "mode": "federated",
            "federation": {"hospitals": 3, "rounds": 6, "malicious": [], "engine": "inprocess"},
        },
        tmp_path / "federated",
    )

    def auc(table: pd.DataFrame) -> float:
        rows = table[(table["metric"] == "auc") & (table["stage"] == "release")]
        return float(rows["value"].iloc[-1])

    # 4 passes in the lake against 6 rounds of one pass: within 3 points of AUC, and far above 0.5.
    assert auc(pooled.table) > 0.85
    assert abs(auc(federated.table) - auc(pooled.table)) < 0.03
