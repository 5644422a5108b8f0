"""Tuning: as many settings for every defence, the rules, and a test set that stays closed."""

import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

import fl_sim as package
from experiments.run.shipped import shipped
from experiments.sweep.grid import Grid
from experiments.tuning import Tuning, tune
from experiments.tuning.choice import make_choices, means_of_settings, rule_in_words
from experiments.tuning.plan import Plan
from experiments.tuning.rule import Choice, Point, Rule, choose
from experiments.tuning.space import Range, Space
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import LOWER_LEAKS, METRICS
from tests.experiments.cli_kit import fl_sim

LWLRD: dict[str, Any] = {
    "label": "LWLRD",
    "name": "lwlrd",
    "epochs": 1,
    "try": {"high": {"low": 3e-3, "high": 1e-1, "log": True}, "layers": ["tensor", "block"]},
}
NOISE: dict[str, Any] = {
    "name": "gaussian_noise",
    "try": {"sigma": {"low": 1e-4, "high": 1.0, "log": True}},
}
FILE: dict[str, Any] = {
    "budget": 2,
    "seeds": [100, 101],
    "final": {"seeds": [0]},
    "validation_share": 0.5,
    "scenario": {
        "mode": "centralized",
        "dataset": {"name": "phantoms", "size": 8, "train": 60, "validation": 40, "test": 30},
        "model": "mlp",
        "data": {"public_images": 6, "test_images": 20},
        "measure": {"scratch_epochs": 1, "columns": 1},
        "training": {"batch_size": 32, "epochs": 1},
    },
    "attack": {"label": "T", "name": "transpose", "images": 4},
    "defense": [LWLRD, NOISE],
}
LEAK = "identification_correlation strongest"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuning]:
    """A small tuning that has come to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "tuning-cache"))
        yield package.tune(FILE, tmp_path_factory.mktemp("tuned") / "out", workers=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "tuning-cache"))


# What is tried.


def test_every_defence_gets_the_same_number_of_settings_its_defaults_first() -> None:
    plan = Plan.of({**FILE, "budget": 7})
    for label in ("LWLRD", "gaussian_noise"):
        trials = plan.tried(label)
        assert len(trials) == 7
        assert [trial.setting for trial in trials] == list(range(7))
        assert len({json.dumps(trial.settings) for trial in trials}) == 7
        assert all(len(trial.cells) == 2 for trial in trials)
    first = plan.tried("LWLRD")[0].settings
    assert (first["high"], first["layers"], first["epochs"]) == (1e-2, "block", 1)
    assert all(0.003 <= trial.settings["high"] <= 0.1 for trial in plan.tried("LWLRD")[1:])
    seeds = {cell.scenario.seed for cell in plan.grid.cells}
    assert seeds == {100, 101} and len(plan.grid.cells) == (7 + 7 + 1) * 2
    # A defence's settings do not depend on the others, but on the seed of the search.
    alone = Plan.of({**FILE, "budget": 7, "defense": [NOISE]})
    assert [t.settings for t in alone.trials[1:]] == [
        trial.settings for trial in plan.tried("gaussian_noise")
    ]
    other = Plan.of({**FILE, "budget": 7, "search_seed": 1})
    assert other.tried("LWLRD")[1].settings != plan.tried("LWLRD")[1].settings
    assert len(Plan.of({**FILE, "budget": 4}).tried("LWLRD")) == 4


def test_ranges_reach_their_ends_and_no_further() -> None:
    whole, ratio = Range(low=3, high=5), Range(low=1e-4, high=1e-2, log=True)
    drawn = [whole.at(place) for place in np.linspace(0, 1, 300, endpoint=False)]
    assert [drawn.count(number) for number in (3, 4, 5)] == [100, 100, 100]
    assert ratio.at(0) == 1e-4 and ratio.at(0.5) == 1e-3 and ratio.at(0.999999) == 1e-2
    assert Range(low=0.0, high=2.0).at(0.25) == 0.5


def test_a_list_may_hold_numbers_and_ranges() -> None:
    decay = [0.0, {"low": 1e-4, "high": 1e-2, "log": True}]
    space = Space("here", "lwlrd", {"epochs": 2}, {"weight_decay": decay, "epochs": [4]})
    assert space.first["epochs"] == 2
    assert space.at([0.2, 0.0])["weight_decay"] == 0.0
    assert space.at([0.75, 0.9])["weight_decay"] == 1e-3 and space.at([0.75, 0.9])["epochs"] == 4


def test_settings_that_a_defence_refuses_are_not_drawn() -> None:
    rates = {key: {"low": 1e-4, "high": 1e-1, "log": True} for key in ("high", "low")}
    plan = Plan.of({**FILE, "budget": 12, "defense": [{"name": "lwlrd", "try": rates}]})
    assert all(t.settings["low"] <= t.settings["high"] for t in plan.tried("lwlrd"))


def test_a_grid_of_lists_is_tried_whole() -> None:
    lists = {"high": [1e-2, 1e-1], "layers": ["tensor", "block"]}
    values = {**FILE, "search": "grid", "defense": [{"name": "lwlrd", "try": lists}]}
    trials = Plan.of({**values, "budget": 4}).tried("lwlrd")
    assert [(t.settings["high"], t.settings["layers"]) for t in trials] == [
        (1e-2, "block"),  # the defaults
        (1e-2, "tensor"),
        (1e-1, "tensor"),
        (1e-1, "block"),
    ]
    with pytest.raises(FlSimError, match=r"has 4 settings, .* budget of every defence is 5"):
        Plan.of({**values, "budget": 5})


def test_trials_are_of_other_seeds_and_never_of_the_test_set() -> None:
    plan = Plan.of(FILE)
    for cell in plan.grid.cells:
        assert cell.scenario.data.validation_share == 0.5
        assert cell.scenario.data.test_images is None
    for cell in plan.final_grid({}).cells:
        assert cell.scenario.data.validation_share is None
        assert (cell.scenario.data.test_images, cell.scenario.seed) == (20, 0)


# The rules.

POINTS = [
    Point(0.90, 0.50, 5.0),
    Point(0.80, 0.05, 9.0),
    Point(0.85, 0.08, 2.0),
    Point(float("nan"), 0.00, 1.0),
    Point(0.85, 0.09, 1.0),
]


def _chosen(points: list[Point], rule: Rule, limit: float | None = None) -> Choice:
    choice = choose(points, rule, limit)
    assert choice is not None
    return choice


def test_the_most_useful_within_the_limit_is_chosen_and_among_equals_the_cheaper() -> None:
    choice = _chosen(POINTS, "constrained", 0.1)
    assert (choice.index, choice.satisfied) == (4, True) and "of 3 that keep" in choice.why
    assert _chosen(POINTS, "constrained", 0.08).index == 2
    assert _chosen(POINTS, "constrained", 1.0).index == 0
    same = [Point(0.8, 0.0, 2.0), Point(0.8, 0.0, 2.0)]
    assert _chosen(same, "constrained", 0.1).index == 0  # then the first
    unknown = [Point(0.8, 0.0, float("nan")), Point(0.8, 0.0, 2.0)]
    assert _chosen(unknown, "constrained", 0.1).index == 1


def test_where_none_keeps_the_limit_the_least_leaking_one_is_chosen_and_that_is_said() -> None:
    choice = _chosen(POINTS, "constrained", 0.01)
    assert (choice.index, choice.satisfied) == (1, False) and "none keeps" in choice.why
    assert choose([Point(float("nan"), 0.1, 1.0)], "constrained", 0.5) is None


def test_the_knee_is_farthest_beyond_the_line_between_the_ends() -> None:
    front = [Point(0.5, 0.0, 1), Point(0.85, 0.1, 1), Point(0.8, 0.3, 1), Point(0.9, 1.0, 1)]
    assert _chosen(front, "knee").index == 1
    # Scaled: whatever the units of utility.
    assert _chosen([Point(100 * p.utility, p.leakage, 1) for p in front], "knee").index == 1
    hollow = [Point(0.5, 0.0, 3), Point(0.55, 0.5, 1), Point(0.9, 1.0, 2)]
    choice = _chosen(hollow, "knee")
    assert choice.index == 2 and "no knee" in choice.why  # the cheaper end
    assert _chosen([Point(0.5, 0.2, 1), Point(0.4, 0.3, 0)], "knee").index == 0


def test_where_lower_leaks_more_the_limit_is_below_the_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turned = replace(METRICS.get(LEAK.split()[0]), direction=LOWER_LEAKS)
    monkeypatch.setattr(Plan, "leakage", property(lambda self: turned))
    plan = Plan.of(FILE)
    choices = make_choices(plan, _made_up(plan, LEAK, {0: (0.9, 0.1), 1: (0.8, 0.22)}))
    assert choices.limit == pytest.approx(0.2) and choices.chosen["LWLRD"].setting == 1
    assert "at least 0.200 (the floor, 0.250, and 0.05 less)" in rule_in_words(plan, choices)


def _made_up(plan: Plan, leak: str, values: dict[int, tuple[float, float]]) -> pd.DataFrame:
    """Trials whose utility and leakage are stated, by setting."""
    rows = []
    for trial in plan.trials:
        for cell in trial.cells:
            utility, leakage = values[trial.setting]
            rows.append(
                {
                    "defense": trial.defense,
                    "setting": trial.setting,
                    "settings": "",
                    "attack": cell.labels["attack"],
                    "seed": cell.scenario.seed,
                    "auc": utility,
                    leak: leakage,
                    "identification_floor": 0.25,
                    "seconds": 1.0,
                    "error": "",
                    "cell": cell.name,
                }
            )
    return pd.DataFrame(rows)


def test_the_limit_is_the_floor_and_the_margin() -> None:
    plan = Plan.of({**FILE, "leakage": {"margin": 0.1}})
    choices = make_choices(plan, _made_up(plan, LEAK, {0: (0.9, 0.6), 1: (0.8, 0.34)}))
    assert (choices.limit, choices.floor) == (pytest.approx(0.35), 0.25)  # type: ignore[comparison-overlap]
    assert choices.chosen["LWLRD"].setting == 1 and choices.chosen["LWLRD"].satisfied
    assert "at most 0.350 (the floor, 0.250, and 0.1 more)" in rule_in_words(plan, choices)
    stated = Plan.of({**FILE, "leakage": {"limit": 0.7}})
    choices = make_choices(stated, _made_up(stated, LEAK, {0: (0.9, 0.6), 1: (0.8, 0.34)}))
    assert (choices.limit, choices.floor) == (0.7, None) and choices.chosen["LWLRD"].setting == 0


def test_of_several_attacks_the_one_that_gets_most_counts() -> None:
    two = [{"name": "transpose", "images": 4}, {"name": "correlated", "images": 4}]
    plan = Plan.of({**FILE, "attack": two})
    trials = _made_up(plan, LEAK, {0: (0.9, 0.6), 1: (0.8, 0.26)})
    worse = (trials["setting"] == 1) & (trials["attack"] == trials["attack"].unique()[1])
    trials.loc[worse, LEAK] = 0.9
    means = means_of_settings(plan, trials).set_index(["defense", "setting"])
    assert means.loc[("LWLRD", 1), LEAK] == pytest.approx(0.9)
    assert make_choices(plan, trials).chosen["LWLRD"].setting == 0


def test_a_setting_with_a_failed_trial_is_not_chosen() -> None:
    plan = Plan.of(FILE)
    trials = _made_up(plan, LEAK, {0: (0.8, 0.26), 1: (0.9, 0.26)})
    assert make_choices(plan, trials).chosen["LWLRD"].setting == 1
    failed = (trials["setting"] == 1) & (trials["seed"] == 101)
    trials.loc[failed, ["auc", LEAK]] = np.nan
    assert make_choices(plan, trials).chosen["LWLRD"].setting == 0
    trials.loc[trials["defense"] == "LWLRD", "auc"] = np.nan
    trials.loc[trials["defense"] == "LWLRD", "error"] = "The loss is not finite."
    with pytest.raises(FlSimError, match=r"No setting of 'LWLRD' .* loss is not finite"):
        make_choices(plan, trials)


# The whole way.


@pytest.mark.slow
def test_what_a_tuning_leaves(tuned: Tuning) -> None:
    out = tuned.out
    trials = pd.read_csv(out / "trials.csv", keep_default_na=False, na_values=[""])
    assert list(trials["defense"].value_counts()) == [4, 4, 2]
    assert trials[["auc", LEAK]].notna().all(axis=None)
    record = json.loads((out / "chosen.json").read_text())
    assert (record["rule"], record["budget"], record["utility"]) == ("constrained", 2, "auc")
    assert record["chosen"].keys() == {"LWLRD", "gaussian_noise"} and "torch" in record["versions"]
    assert (out / "trials.png").read_bytes()[:4] == b"\x89PNG"
    table = tuned.table
    assert table["defense"].iloc[0] == "none"
    assert set(table["choice"]) <= {"", "default", "tuned", "default = tuned"}
    assert table.loc[table["defense"] == "gaussian_noise", "test auc"].notna().all()
    one = record["chosen"]["gaussian_noise"]
    own = trials[(trials["defense"] == "gaussian_noise") & (trials["setting"] == one["setting"])]
    assert own["auc"].mean() == pytest.approx(one["utility"])
    # The file of the choice is a grid, of runs that the final sweep has.
    grid = Grid.from_mapping(tomllib.loads((out / "chosen.toml").read_text()))
    final = {cell.name for cell in tuned.final_sweep.grid.cells}
    assert len(grid.cells) == 2 and {cell.name for cell in grid.cells} <= final
    assert "reported on the test set" in repr(tuned) and "<table" in tuned._repr_html_()


def test_the_same_call_runs_nothing_again_and_another_tuning_is_refused(tuned: Tuning) -> None:
    files = [*tuned.out.glob("*/cells/*/[!.]*"), tuned.out / "chosen.json"]
    before = {path: os.stat(path).st_mtime_ns for path in files}
    again = tune(FILE, tuned.out, workers=0)
    assert before == {path: os.stat(path).st_mtime_ns for path in before} and len(before) > 30
    pd.testing.assert_frame_equal(again.table, tuned.table)
    for other in ({"budget": 3}, {"rule": "knee"}, {"final": {"seeds": [1]}}):
        with pytest.raises(FlSimError, match="opened once; tune into another folder"):
            tune({**FILE, **other}, tuned.out, workers=0)
    assert before == {path: os.stat(path).st_mtime_ns for path in before}


def test_a_tuning_that_was_cut_continues_and_the_test_set_opens_last(
    tuned: Tuning, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tuned.out / "trials", out / "trials")
    gone = sorted((out / "trials" / "cells").glob("*gaussian*"))[:2]
    for folder in gone:
        shutil.rmtree(folder)
    kept = {p: os.stat(p).st_mtime_ns for p in (out / "trials" / "cells").glob("*/finished")}
    closed = tune(FILE, out, workers=0, final=False)
    assert not (out / "final").exists() and not closed.reported
    assert "test auc" not in closed.table and "is closed" in repr(closed)
    assert (
        kept.items()
        <= {
            p: os.stat(p).st_mtime_ns for p in (out / "trials" / "cells").glob("*/finished")
        }.items()
    )
    assert closed.choices.settings == tuned.choices.settings
    # As long as it is closed, what is tuned may change.
    knee = tune({**FILE, "rule": "knee"}, out, workers=0, final=False)
    assert knee.choices.limit is None and "knee" in knee.rule


@pytest.mark.slow
def test_no_test_image_reaches_the_choice(tmp_path: Path) -> None:
    source = load_dataset("phantoms", {"size": 8, "train": 60, "validation": 40, "test": 40})
    parts = {"train": source.train, "val": source.validation, "test": source.test}
    whole = {f"{name}_images": part.images for name, part in parts.items()}
    whole |= {f"{name}_labels": part.labels[:, None] for name, part in parts.items()}
    noise = np.random.default_rng(0).integers(0, 256, whole["test_images"].shape, dtype=np.uint8)
    broken = {"test_images": noise, "test_labels": whole["test_labels"][::-1]}
    results = []
    for name, arrays in {"whole": whole, "broken": whole | broken}.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "d.npz", **arrays)
        scenario = {**FILE["scenario"], "dataset": str(tmp_path / name / "d.npz")}
        values = {**FILE, "seeds": [100], "scenario": scenario, "defense": [NOISE]}
        results.append(tune(values, tmp_path / name / "out", workers=0))
    whole_one, broken_one = (result.trials.drop(columns="seconds") for result in results)
    pd.testing.assert_frame_equal(whole_one, broken_one)
    assert results[0].choices.settings == results[1].choices.settings
    assert list(results[0].table["test auc"]) != list(results[1].table["test auc"])


# Wrong files, and the command line.


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"buget": 3}, "The tuning file has no key 'buget'. Did you mean 'budget'"),
        ({"attack": []}, "attack"),
        ({"seeds": [0, 1]}, r"the seed 0 is one of tuning and of \[final\]"),
        ({"rule": "kne"}, "rule"),
        ({"utility": "auk"}, "Did you mean 'auc'"),
        ({"leakage": {"metric": "ssim"}}, r"\[leakage\] metric is 'ssim'. Did you mean 'ssim "),
        ({"leakage": {"metric": "psnr strongest"}, "budget": 2}, "no floor; give its limit"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"scenario": {**FILE["scenario"], "defense": "lwlrd"}}, r"say \[\[defense\]\]"),
        ({"scenario": {**FILE["scenario"], "datset": "x"}}, "Did you mean 'dataset'"),
        (
            {"scenario": {**FILE["scenario"], "data": {"validation_share": 0.2}}},
            "at the file's top",
        ),
        (
            {"scenario": {**FILE["scenario"], "data": {"split": "patient"}}},
            "test set would be tuned on; leave it out",
        ),
        ({"defense": [NOISE, NOISE]}, "a label of its own"),
        ({"defense": [{**NOISE, "label": "none"}]}, "the undefended model's"),
        ({"defense": [{"name": "lwlrdd", "try": {"high": [1]}}]}, "Did you mean 'lwlrd'"),
        ({"defense": [{"name": "lwlrd", "hig": 1}]}, "has no key 'hig'. Did you mean 'high'"),
        ({"defense": [{"name": "lwlrd"}]}, "has nothing to try"),
        ({"defense": [{"name": "lwlrd", "try": {"hihg": [1]}}]}, "Did you mean 'high'"),
        ({"defense": [{"name": "lwlrd", "try": {"high": 1}}]}, "should be a list, or a range"),
        ({"defense": [{"name": "lwlrd", "try": {"high": []}}]}, "should be a list, or a range"),
        (
            {"defense": [{"name": "lwlrd", "try": {"high": {"low": 2, "high": 1}}}]},
            r"must be below high",
        ),
        (
            {"defense": [{"name": "lwlrd", "try": {"high": {"low": 0, "high": 1, "log": True}}}]},
            "must be above 0",
        ),
        (
            {"defense": [{"name": "lwlrd", "try": {"high": {"low": 1e-3, "high": 1, "logs": 1}}}]},
            "Did you mean 'log'",
        ),
        (
            {"defense": [{"name": "lwlrd", "try": {"layers": ["tensor", "blok"]}}]},
            r"try layers has the value 'blok'\. Input should be 'tensor'",
        ),
        (
            {"defense": [{"name": "lwlrd", "try": {"epochs": {"low": 0, "high": 3}}}]},
            r"try epochs has the value 0\. Input should be greater than or equal to 1",
        ),
        (
            {"defense": [{"name": "lwlrd", "try": {"layers": ["tensor", "block"]}}], "budget": 3},
            "has only 2 different settings to try, but the budget of every defence is 3",
        ),
        ({"search": "grid"}, "has a range for 'high'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(FlSimError, match=words) as raised:
        Plan.of({**FILE, **changed})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", shipped("tuning"))
def test_shipped_files_are_plans_and_say_what_they_are(name: str) -> None:
    plan = Plan.of(name)
    assert plan.name == name and len(plan.components) > 3
    assert {len(plan.tried(label)) for label in plan.components} == {plan.file.budget}
    assert shipped("tuning")[name].read_text(encoding="utf-8").startswith("# ")


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(tomli_w.dumps({**FILE, "seeds": [100], "defense": [NOISE]}))
    arguments = ("tune", "t.toml", "--out", "out", "--workers", "0", "--set", "budget=2")
    done = fl_sim(*arguments, "--no-final", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 defences, 2 settings of each (random), 3 trials" in done.stdout
    assert "The test set is closed" in done.stdout and "validation" in done.stdout
    assert not (tmp_path / "out" / "final").exists()
    done = fl_sim(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Of the settings with identification_correlation strongest of at most" in said
    assert "is closed" not in said and "gaussian_noise" in said and "±" not in said
    done = fl_sim(*arguments, "--set", "rule=knee", cwd=tmp_path)
    assert done.returncode == 2 and "opened once" in done.stderr
    done = fl_sim(*arguments, "--set", "attack.images=3", cwd=tmp_path)
    assert done.returncode == 2 and "its own attacks and defences" in done.stderr
    done = fl_sim("tune", "tuned-dermamnst", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'tuned-dermamnist'" in done.stderr
