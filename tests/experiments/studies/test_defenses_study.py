"""The study of defences: its table, its trade-off and its picture."""

import pandas as pd
import pytest

from experiments.studies.base import How
from experiments.studies.defenses import (
    HIDDEN,
    HONEST,
    MEMORY,
    MEMORY_AUC,
    MEMORY_FOUND,
    STUDY,
    draw_headline,
    grids,
    headline_cells,
)
from experiments.sweep.grid import Grid
from tests.network_kit import DEEP


def _tiny() -> dict:
    cells = grids()["resnet18"]
    cells["seeds"] = [0]
    cells["scenario"] = {
        "mode": "centralized",
        "dataset": {"name": "phantoms", "size": 8},
        "training": {"epochs": 0.2},
        "data": {"train_images": 64, "images": 16, "test_images": 32},
        "measure": {"scratch_epochs": 1},
    }
    cells["grid"]["model"] = [{"label": "deep", "name": DEEP}]
    cells["cells"] = []
    attacks = cells["grid"]["attack"]
    attacks[0]["images"] = 4
    for part in attacks[1]["parts"].values():
        part["images"] = 3
    kept = ("LWLRD, SGD 1e-2 to 1e-4", "consistent distillation")
    chosen = [d for d in cells["grid"]["defense"] if d == "none" or d["label"] in kept]
    chosen[1]["epochs"], chosen[2]["steps"] = 1, 2
    cells["grid"]["defense"] = chosen
    return cells


def test_the_shipped_grids_are_what_the_study_reads() -> None:
    for part, seeds in (("resnet18", 3), ("cnn", 10)):
        cells = Grid.of(grids()[part]).cells
        attacks = {cell.labels["attack"] for cell in cells}
        assert attacks == {MEMORY, HONEST} | ({HIDDEN} if part == "resnet18" else set())
        assert len({cell.scenario.seed for cell in cells}) == seeds


def test_the_controls_see_as_much_as_the_student() -> None:
    for values in grids().values():
        one = [cell for cell in Grid.of(values).cells if cell.scenario.seed == 0]
        same = {c.labels["defense"]: c.scenario for c in one if "same views" in str(c)}
        assert len(same) >= 7
        for label, scenario in same.items():
            if scenario.defense is None:
                told = scenario.training
                shown = told.steps(6751) * told.batch_size
                assert shown == pytest.approx(38_400, abs=64), label
            else:
                told = scenario.make_defense().settings
                assert told.max_steps * told.batch_size == 38_400, label
            assert (told.views, told.mixup, told.schedule) == ("square", 1.0, "cosine"), label
        student = next(c for c in one if c.labels["defense"] == "consistent distillation")
        told = student.scenario.make_defense().settings
        assert told.steps * told.batch_size == 38_400
        assert (told.views, told.mixup, told.schedule) == ("square", 1.0, "cosine")


def test_table_trade_off_and_picture(tmp_path) -> None:
    cells = _tiny()
    table = STUDY.run({"cells": cells}, tmp_path, How(workers=0))
    assert list(table["defense"]) == ["none", "LWLRD, SGD 1e-2 to 1e-4", "consistent distillation"]
    intact = table.set_index("defense")[f"{HIDDEN}: images_intact[dead]"]
    assert intact["none"] == 3
    assert intact["LWLRD, SGD 1e-2 to 1e-4"] == 3
    assert intact["consistent distillation"] == 0
    assert table[[MEMORY_FOUND, MEMORY_AUC, "auc_floor_scratch"]].notna().all().all()
    written = pd.read_csv(tmp_path / "defenses.csv")
    assert list(written.columns) == list(table.columns)
    shown = headline_cells(Grid.of(cells), tmp_path / "cells")
    assert set(shown) == {MEMORY, HIDDEN}
    picture = draw_headline(tmp_path / "headline.png", shown, columns=3)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "defenses.png").read_bytes()[:4] == b"\x89PNG"
