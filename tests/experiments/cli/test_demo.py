"""The demo says what its tables hold, and shows what its pictures hold."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from experiments.cli import demo
from experiments.cli import main as cli
from experiments.run.scenario import Scenario
from experiments.run.shipped import SCENARIOS
from experiments.studies.published import README
from fl_sim.results import COLUMNS, read_table

HIDDEN = 20
SMALL = """
dataset = {name = "phantoms", size = 8, train = 60, validation = 30, test = 30}
model = "cnn"
attack = {name = "transpose", images = 4}
defense = {name = "lwlrd", epochs = 1}
data = {public_images = 12}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 1}
"""
PARTS = {
    "centralized": "",
    "federated": 'federation = {hospitals = 2, rounds = 1, engine = "inprocess"}',
}


def table(mode, found, auc, scratch=0.61, defense="lwlrd", hospitals=4, server_round=3):
    """A long table of one run: found images and AUC by stage, in its last round."""
    rows = []

    def add(stage, metric, value, extraction="-", at=server_round):
        rows.append(
            dict.fromkeys(COLUMNS, "x")
            | {
                "seed": 0,
                "mode": mode,
                "defense": defense,
                "clients": hospitals,
                "round": at,
                "stage": stage,
                "extraction": extraction,
                "metric": metric,
                "value": value,
            }
        )

    for stage, count in found.items():
        add(stage, "identification_distance", count / HIDDEN, "strongest")
        add(stage, "identification_correlation", 1 / HIDDEN, "strongest")
        add(stage, "identification_chance", 1 / HIDDEN)
        # What an earlier round measured, or one attacker, is not what is said.
        add(stage, "identification_distance", 1.0, "strongest", at=server_round - 1)
        add(stage, "identification_correlation", 1.0, "strongest", at=server_round - 1)
        add(f"{stage}:0", "identification_distance", 1.0, "strongest")
        add(f"{stage}:0", "identification_correlation", 1.0, "strongest")
    for stage, value in auc.items():
        add(stage, "auc", value)
    add("release", "auc_floor_scratch", scratch)
    return pd.DataFrame(rows)


LAKE = {"upload": 18, "release": 3}
UNION = {"upload": 17, "aggregate": 9, "release": 2}
WORTH = {"upload": 0.5, "aggregate": 0.82, "release": 0.79}


def said(lake=LAKE, union=UNION, **others):
    return demo.sentences(
        {
            "centralized": table("centralized", lake, {"upload": 0.91, "release": 0.88}, **others),
            "federated": table("federated", union, WORTH, **others),
        }
    )


def test_the_sentences_say_the_tables_numbers():
    lake, union, worth = said()
    assert "18 of 20 hidden images" in lake and "3 of 20 in the file that left" in lake
    assert "the defence lwlrd" in lake and "3 honest hospitals" in union
    assert [int(word) for word in union.split() if word.isdigit()][:6] == [17, 20, 9, 20, 3, 2]
    assert "0.91 before the defence and 0.88 after it in the data lake" in worth
    assert "0.82 before the defence and 0.79 after it in the federation" in worth
    assert worth.endswith("has 0.61.")


def test_the_readme_shows_what_the_demo_says():
    shown = README.read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    number = re.compile(r"\d[\d.]*\d|\d")
    assert number.sub("#", " ".join(shown.split())) == number.sub("#", " ".join(said(hospitals=3)))


def test_other_tables_give_other_sentences():
    lake, union, _ = said({"upload": 20, "release": 20}, {**UNION, "release": 11}, hospitals=2)
    assert "20 of 20 in the file that left" in lake and "18" not in lake
    assert "11 of 20 in the file that left" in union and "1 honest hospital," in union


def test_without_a_defence_none_is_named():
    lake, union, worth = said(defense="none", scratch=float("nan"))
    assert "defence" not in lake + union + worth
    assert worth == "The model's AUC is 0.88 in the data lake, 0.79 in the federation."


def test_the_picture_has_both_modes_and_leaves_out_what_is_not_there(tmp_path):
    shades = {"original": 0.1, "upload/raw": 0.9, "release/raw": 0.3, "release/affine": 0.5}
    lake = {name: torch.full((2, 1, 4, 4), shade) for name, shade in shades.items()}
    lake |= {f"{name}/ssim": torch.full((2,), s) for name, s in shades.items() if "/" in name}
    union = lake | {
        "aggregate/raw": torch.full((2, 1, 4, 4), 0.7),
        "aggregate/raw/ssim": torch.ones(2),
    }
    path = demo.draw(tmp_path / "demo.png", {"centralized": lake, "federated": union})
    grey = np.asarray(Image.open(path).convert("L"))
    left, right = np.array_split(grey[:, 135:], 2, axis=1)
    expected = {name: round(255 * shade) for name, shade in shades.items()}
    for part in (left, right):
        for name, shade in expected.items():
            assert (abs(part.astype(int) - shade) <= 1).sum() > 500, name
    averaged = round(255 * 0.7)
    assert (abs(right.astype(int) - averaged) <= 1).sum() > 500
    assert (abs(left.astype(int) - averaged) <= 1).sum() < 100
    # In the order of what happens, also where the data lake has nothing to show.
    heights = [
        np.flatnonzero((abs(right.astype(int) - s) <= 1).sum(1) > 20).mean()
        for s in (
            expected["original"],
            expected["upload/raw"],
            averaged,
            expected["release/raw"],
            expected["release/affine"],
        )
    ]
    assert heights == sorted(heights)


def test_the_scenarios_are_those_of_one_attack_and_one_defence():
    lake, union = (Scenario.from_toml(SCENARIOS / f"{n}.toml") for n in demo.RUNS.values())
    assert (lake.mode, union.mode) == tuple(demo.RUNS)
    assert (lake.attack.name, lake.defense) == (union.attack.name, union.defense)
    assert (lake.dataset, lake.model) == (union.dataset, union.model)


def test_the_command_runs_both_and_ends_with_what_was_seen(tmp_path, monkeypatch):
    for mode, name in demo.RUNS.items():
        (tmp_path / f"{name}.toml").write_text(f'mode = "{mode}"\n{SMALL}{PARTS[mode]}')
    monkeypatch.setattr(demo, "SCENARIOS", tmp_path)
    done = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    tables = {m: read_table(tmp_path / "out" / n / "results.csv") for m, n in demo.RUNS.items()}
    joined = " ".join(done.output.split())
    assert all(sentence in joined for sentence in demo.sentences(tables))
    page = (tmp_path / "out" / "demo.html").read_text()
    assert "centralized" in page and "federated" in page
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("mode", demo.RUNS)
def test_what_the_demo_shows_can_be_recognised(mode, tmp_path):
    """Nearly all images are found wherever the attacker looks, and the model is worth its data."""
    from experiments.run.start import run

    last = demo.seen(run(SCENARIOS / f"{demo.RUNS[mode]}.toml", tmp_path).table)
    assert last.hidden == 16 and set(last.found) >= {"upload", "release"}
    assert min(last.found.values()) >= 12
    assert last.auc["release"] > last.scratch + 0.05
