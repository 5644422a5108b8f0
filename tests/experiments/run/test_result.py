"""What a run gives back in Python: in a line, on a page, as images, as paths."""

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.run.folder import load_pictures
from experiments.run.result import Result
from experiments.run.start import run
from experiments.sweep.start import sweep
from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.metrics.answers import read_answers
from fl_sim.metrics.leakage import ssim
from fl_sim.metrics.utility import utility
from fl_sim.results import FACTS
from tests.experiments.run_kit import CENTRALIZED, FEDERATED

HOSTILE = "<script>alert('x')</script>\"&"


pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(CENTRALIZED, tmp_path_factory.mktemp("lake") / "out", progress=False)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Result:
    federation = {**FEDERATED["federation"], "malicious": [1, 0], "rounds": 2}
    scenario = {**FEDERATED, "federation": federation}
    return run(scenario, tmp_path_factory.mktemp("federation") / "out", progress=False)


def test_a_result_is_a_line_with_its_main_numbers(lake: Result) -> None:
    first, second = repr(lake).split("\n")
    identity = lake.table["scenario"].iloc[0]
    assert first == f"Result of {identity}, seed 0, in {lake.out}"
    summary = lake.summary().set_index("stage")
    for column in ("ssim strongest", "auc"):
        before, after = (f"{summary.loc[stage, column]:.3f}" for stage in ("upload", "release"))
        assert f"{before} -> {after}" in second
    assert f"floor {summary.loc['release', 'ssim_floor_mean']:.3f}" in second
    assert f"from scratch {summary.loc['release', 'auc_floor_scratch']:.3f}" in second


def test_a_result_whose_folder_is_gone_still_prints(lake: Result, tmp_path: Path) -> None:
    gone = Result(lake.scenario, tmp_path / "gone")
    assert "does not exist" in repr(gone) and "does not exist" in gone._repr_html_()


def test_the_page_of_a_result_has_its_numbers_and_its_picture(lake: Result) -> None:
    page = lake._repr_html_()
    summary = lake.summary()
    assert f"{summary['auc'].iloc[-1]:.3f}</td>" in page
    (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(content) == lake.picture.read_bytes()
    assert len(re.findall("<tr>", page)) == 1 + len(summary)


def test_names_from_files_are_text(lake: Result, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(lake.out, folder)
    table = (folder / "results.csv").read_text()
    identity = str(lake.table["scenario"].iloc[0])
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    (folder / "results.csv").write_text(
        table.replace(identity, quoted).replace(",upload,", ",\x1bup,")
    )
    result = Result(None, folder)
    assert result.table["scenario"].iloc[0] == HOSTILE
    page = result._repr_html_()
    assert "<script" not in page and "&lt;script" in page
    assert "\x1b" not in page + repr(result)


def test_the_summary_says_which_run_it_is(lake: Result, federation: Result) -> None:
    both = pd.concat([lake.summary(), federation.summary()])
    assert list(both.columns[: len(FACTS)]) == list(FACTS)
    assert set(both["mode"]) == {"centralized", "federated"}
    assert set(both["attack"]) == {"transpose"} and set(both["defense"]) == {"lwlrd"}
    stages = ["upload", "aggregate", "release", "upload:0", "upload:1"]
    stages += ["aggregate:0", "aggregate:1", "release:0", "release:1"]
    assert federation.summary()["stage"].tolist() == 2 * stages


@pytest.mark.parametrize("stage", ["upload", "release"])
def test_best_is_what_the_table_calls_strongest(lake: Result, stage: str) -> None:
    images = lake.best(stage)
    assert images.shape == lake.originals.shape
    table = lake.table
    top = table[
        (table["stage"] == stage)
        & (table["metric"] == "ssim")
        & (table["extraction"] == "strongest")
    ]["value"].item()
    assert float(ssim(images, lake.originals).double().mean()) == pytest.approx(top, abs=1e-6)
    raw = load_pictures(lake.out)[f"{stage}/raw/ssim"]
    assert float(raw.mean()) <= top + 1e-6


def test_a_stage_that_is_none_and_a_run_without_an_attack_are_told(
    lake: Result, tmp_path: Path
) -> None:
    with pytest.raises(FlSimError, match=r"no stage called 'relase'\. Did you mean 'release'"):
        lake.best("relase")
    with pytest.raises(FlSimError, match="no stage called 'aggregate'"):
        lake.best("aggregate")  # a data lake averages nothing
    with pytest.raises(FlSimError, match="Nothing was hidden"):
        Result(None, tmp_path).best()


def test_the_key_opens_the_artifact(lake: Result, federation: Result) -> None:
    for result, hospital in ((lake, 0), (federation, 1)):
        assert result.key.name == f"hospital-{hospital}.safetensors"
        images = extract(result.artifact, result.key).images
        torch.testing.assert_close(images.clamp(0, 1), result.recovered["release/raw"])


def test_a_result_is_shown_and_reported(
    lake: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake.show()
    printed = capsys.readouterr().out
    assert "AUC" in printed and "release" in printed
    assert lake.report() == lake.out / "report.html"
    page = lake.report(tmp_path / "page.html")
    assert page.read_text() == (lake.out / "report.html").read_text()
    (lake.out / "report.html").unlink()


def test_scenarios_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("demo-centralised", "There is no scenario called .*Did you mean 'demo-centralized'"),
        ("my.toml", "The scenario file my.toml does not exist"),
        (Path("my.toml"), "does not exist"),
    ):
        with pytest.raises(FlSimError, match=words):
            run(name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_scenario_is_run_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begin(study: Any) -> None:
        assert study.scenario.mode == "centralized"
        raise Begun

    monkeypatch.setattr("experiments.run.centralized.run_centralized", begin)
    for name in ("demo-centralized", Path("demo-centralized")):
        with pytest.raises(Begun):
            run(name, tmp_path / "out", progress=False)


def test_a_sweep_is_a_line_and_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scenario = {**CENTRALIZED, "attack": "none", "measure": {"scratch_epochs": 0}}
    grid = {
        "scenario": scenario,
        "grid": {"defense": ["none", {"label": HOSTILE, "name": "lwlrd", "epochs": 1}]},
    }
    result = sweep(grid, tmp_path / "out", workers=0)
    output, errors = capfd.readouterr()
    assert output == "" and "cells: 2 of 2" in errors
    assert repr(result) == f"SweepResult of sweep: 2 of 2 cells ended, in {tmp_path / 'out'}"
    page = result._repr_html_()
    assert "<script" not in page and "&lt;script" in page
    auc = result.released().iloc[0].to_dict()["auc"]
    assert f">{auc}</td>" in page
    note = next((tmp_path / "out" / "jobs").glob(f"{result.grid.cells[1].name}.json"))
    note.write_text(note.read_text().replace('"error": null', '"error": "no <b>disk</b>"'))
    assert "1 of 2 cells ended, 1 failed" in repr(result)
    assert "no &lt;b&gt;disk" in result._repr_html_()
    shutil.rmtree(tmp_path / "out" / "jobs")
    assert "0 of 2 cells ended" in result._repr_html_()


@pytest.mark.parametrize("stage", ["upload", "release"])
def test_the_answers_of_each_stage_are_kept(lake: Result, stage: str) -> None:
    kept = read_answers(lake.out / "answers" / f"{stage}.npz")
    task = Task("multi-class", tuple(map(str, range(kept.scores.shape[1]))))
    again = utility(torch.tensor(kept.scores), torch.tensor(kept.labels), task)
    row = lake.summary().set_index("stage").loc[stage]
    assert again["auc"] == pytest.approx(row["auc"], abs=1e-6)
    assert 0 < row["auc_error"] < 0.2 and row["test_images"] == len(kept.scores)
    assert row["stolen_images"] == len(lake.originals)
    assert row["identification_floor"] <= row["identification_floor_high"]
    assert row["ssim chosen"] <= row["ssim strongest"]
