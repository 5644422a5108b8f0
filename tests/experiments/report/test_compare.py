"""Several runs side by side: found by pattern, told apart, tabulated, drawn."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.run.result import Result
from experiments.run.start import run
from experiments.sweep.compare import Runs, compare, load_runs
from experiments.sweep.start import SweepResult, sweep
from fl_sim.errors import FlSimError
from tests.experiments.run_kit import CENTRALIZED, FEDERATED

TUNED = {"name": "fine_tuning", "epochs": 1}


pytestmark = pytest.mark.usefixtures("module_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds and another defence in a data lake, and a federation."""
    out = tmp_path_factory.mktemp("runs") / "runs"
    for seed in (0, 1):
        run({**CENTRALIZED, "seed": seed}, out / f"lake-{seed}", progress=False)
    run({**CENTRALIZED, "defense": TUNED}, out / "lake-tuned", progress=False)
    federation = {**FEDERATED["federation"], "rounds": 1}
    run({**FEDERATED, "federation": federation}, out / "federation", progress=False)
    return out


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    grid = {
        "scenario": CENTRALIZED,
        "grid": {"defense": ["none", {"label": "LWLRD", "name": "lwlrd"}]},
    }
    return sweep(grid, tmp_path_factory.mktemp("sweep") / "out", workers=0, progress=False)


def test_runs_are_told_apart_by_what_differs(folder: Path) -> None:
    runs = load_runs(f"{folder}/*")
    assert len(runs) == 4 and runs.left_out == ()
    frame = runs.summary()
    assert list(frame.columns[:4]) == ["defense", "mode", "seed", "stage"]
    lake, both = ["upload", "release"], ["upload", "aggregate", "release"]
    assert sorted(
        zip(frame["defense"], frame["mode"], frame["seed"], frame["stage"], strict=True)
    ) == sorted(
        [("lwlrd", "centralized", seed, stage) for seed in (0, 1) for stage in lake]
        + [("fine_tuning", "centralized", 0, stage) for stage in lake]
        + [("lwlrd", "federated", 0, stage) for stage in both]
    )
    assert list(frame.columns[-5:]) == ["dataset", "model", "attack", "aggregator", "run"]
    assert set(frame["attack"]) == {"transpose"}
    for result in runs:
        assert isinstance(result, Result)
        own = result.summary().set_index("stage")["auc"]
        mine = frame[frame["run"] == str(result.out)].set_index("stage")["auc"]
        assert mine.to_dict() == own.to_dict()
    assert repr(runs) == "Runs: 4 runs, 2 seeds, told apart by defense, mode"


def test_means_over_seeds_have_intervals(folder: Path) -> None:
    runs = load_runs([folder / "lake-0", folder / "lake-1"])
    frame = runs.summary()
    row = runs.intervals(metrics=["auc"], stages=["release"]).iloc[0]
    values = frame[frame["stage"] == "release"]["auc"]
    assert row["n"] == 2 and row["mean"] == pytest.approx(values.mean())
    assert row["low"] < row["mean"] < row["high"]
    assert repr(runs) == "Runs: 2 runs, 2 seeds"


def test_a_folder_of_runs_a_pattern_and_results_mean_the_same(folder: Path) -> None:
    whole = load_runs(folder).summary()
    assert load_runs(f"{folder}/*").summary().equals(whole)
    results = list(load_runs(folder))
    assert load_runs(results).summary().equals(whole)
    assert compare(results[0], *results[1:]).summary().equals(whole)
    assert compare([*results, results[0]]).summary().equals(whole)  # the same run is one run


def test_a_sweep_keeps_its_labels(swept: SweepResult, folder: Path) -> None:
    runs = load_runs(swept)
    assert len(runs) == 2 == len(load_runs(swept.out)) == len(load_runs(f"{swept.out.parent}/*"))
    assert runs.summary()["defense"].unique().tolist() == ["none", "LWLRD"]
    assert len(compare(swept, folder / "federation")) == 3


def test_what_is_not_finished_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lake-0", tmp_path / "done")
    shutil.copytree(folder / "lake-1", tmp_path / "killed")
    (tmp_path / "killed" / "finished").unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").touch()
    runs = load_runs(f"{tmp_path}/*")
    assert len(runs) == 1 and runs.left_out == (tmp_path / "killed", tmp_path / "notes")
    assert "left out, without a finished run: " in repr(runs) and "killed" in repr(runs)
    assert "killed" in runs._repr_html_()
    with pytest.raises(FlSimError, match=r"The run in .*killed has not come to its end"):
        load_runs(tmp_path / "killed")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{}/none*", "The pattern .*none.* matches nothing"),
        ("{}/lake_0", r"does not exist\. Did you mean 'lake-0'"),
        ("{}/lake-0/images", "There is no finished run in .*images"),
        ([], "There is no run to load"),
        (3, "given by its result, folder or pattern, not 3"),
        ([None], "not None"),
    ],
)
def test_what_is_no_run_is_one_sentence(folder: Path, source: Any, words: str) -> None:
    given = source.format(folder) if isinstance(source, str) else source
    with pytest.raises(FlSimError, match=words):
        load_runs(given)


def test_a_damaged_run_is_named_and_never_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lake-0", tmp_path / "runs" / "lake")
    table = tmp_path / "runs" / "lake" / "results.csv"
    table.write_bytes(table.read_bytes()[:-20])
    for source in (tmp_path / "runs" / "lake", f"{tmp_path}/runs/*"):
        with pytest.raises(FlSimError, match=r"results\.csv is missing or not as the run"):
            load_runs(source)


def test_nothing_that_a_folder_names_is_imported(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lake-0", tmp_path / "lake")
    about = tmp_path / "lake" / "scenario.json"
    text = about.read_text()
    assert '"plugins"' in text
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    about.write_text(text.replace('"plugins": []', '"plugins": ["trap"]'))
    (result,) = load_runs(tmp_path / "lake")
    assert result.settings["plugins"] == ["trap"] and result.scenario is None
    result._repr_html_()


def test_one_run_is_not_compared(folder: Path) -> None:
    with pytest.raises(FlSimError, match="one run to compare"):
        compare(folder / "lake-0")


def test_a_plot_has_a_point_a_run_and_its_floors(folder: Path) -> None:
    from matplotlib.figure import Figure

    runs = load_runs(folder)
    axes = runs.plot("ssim strongest", by="defense", axes=Figure().subplots())
    released = runs.summary()
    released = released[released["stage"] == "release"]
    drawn = {c.get_label(): c.get_offsets().data.tolist() for c in axes.collections}
    assert list(drawn) == ["lwlrd", "fine_tuning"] or list(drawn) == ["fine_tuning", "lwlrd"]
    for defense, points in drawn.items():
        mine = released[released["defense"] == defense]
        assert points == mine[["auc", "ssim strongest"]].to_numpy().tolist()
    floors = {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    known = released["ssim_floor_mean"]
    assert floors == {known.min(), known.max()}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "lwlrd",
        "fine_tuning",
        "mean of public images",
        "trained from scratch",
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("AUC at release", "SSIM, at best")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "ssim"}, "no metric 'ssim'. Did you mean 'ssim"),
        ({"by": "defence"}, "no column 'defence'. Did you mean 'defense'"),
        ({"stage": "realease"}, "no stage 'realease'. Did you mean 'release'"),
        ({"utility": "dise"}, "no metric 'dise'"),
    ],
)
def test_a_wrong_name_in_a_plot_is_one_sentence(
    folder: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(FlSimError, match=words):
        load_runs(folder / "lake-0").plot(**options)


def test_the_page_of_runs_has_their_release(folder: Path) -> None:
    runs: Runs = load_runs(folder)
    page = runs._repr_html_()
    frame = runs.summary()
    released = frame[frame["stage"] == "release"]
    assert page.count("<tr>") == 1 + len(released)
    for value in released["auc"]:
        assert f">{value:.3f}</td>" in page
