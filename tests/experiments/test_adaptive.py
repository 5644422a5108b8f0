"""The study of adaptive attackers, small: a table, figures, and no second run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments import adaptive
from experiments.adaptive import BEST, Cell
from experiments.pictures import draw_blocks
from experiments.scenario import Scenario
from fl_sim.errors import FlSimError
from fl_sim.results import STAGES

BASE: dict[str, Any] = {
    "dataset": "phantoms",
    "model": {"name": "resnet18", "stem": "default"},
    "defense": {"name": "lwlrd", "epochs": 1},
    "training": {"epochs": 0.5, "batch_size": 16},
    "measure": {"scratch_epochs": 0},
    "data": {"train_images": 32, "test_images": 20, "images": 20},
    "threads": 1,
}


@pytest.mark.slow
def test_dead_weights_let_everything_through_and_low_bits_nothing(tmp_path: Path) -> None:
    alone, averaged = adaptive.attackers(4), adaptive.attackers(4, 5)
    five = {"hospitals": 5, "rounds": 1}
    cells = [
        Cell("low bits", alone["low bits"]),
        Cell("low bits", averaged["low bits"], five),
        *(Cell(BEST, averaged[BEST], {**five, "malicious": (0, 1), "collusion": kind}, kind)
          for kind in ("repeat", "split")),
    ]  # fmt: skip
    frame = adaptive.study(BASE, cells, tmp_path)
    assert len(frame) == 2 + 3 * 3
    rows = frame.set_index(["mode", "attacker", "variant", "stage"]).sort_index()
    intact, lake = rows["images_intact"], ("data lake", "low bits", "")
    assert intact[*lake, "upload"] == 4 and intact[*lake, "release"] == 0
    assert intact["fedavg, 5 hospitals", "low bits", "", "release"] == 0
    # Written for the average: illegible in the upload, whole in what is broadcast after LWLRD.
    both = {kind: rows.loc["fedavg, 5 hospitals", BEST, kind] for kind in ("repeat", "split")}
    arrived = [[rows["images_intact"][stage] for stage in STAGES] for rows in both.values()]
    assert arrived == [[0, 4, 4], [0, 8, 8]]
    once, twice = (rows["bytes_of_run"]["release"] for rows in both.values())
    assert twice > 1.5 * once
    pictures = sorted(tmp_path.glob("runs/*/images/survival.png"))
    assert len(pictures) == len(cells)
    assert not list(tmp_path.glob("runs/*/artifacts/upload*"))
    assert len(pd.read_csv(tmp_path / "adaptive.csv")) == len(frame)
    runs = {
        ("low bits", "data lake"): tmp_path / "runs" / "data-lake-low-bits-seed0",
        (BEST, "federation"): pictures[-1].parents[1],
    }
    assert adaptive.draw_overview(tmp_path / "overview.png", runs, 3).stat().st_size > 5_000
    with pytest.raises(FlSimError, match="is not the folder of a run"):
        adaptive.draw_overview(tmp_path / "overview.png", {("a", "b"): tmp_path})


@pytest.mark.parametrize("hospitals", [1, 4, 16])
def test_every_attacker_makes_a_scenario(hospitals: int) -> None:
    cells = adaptive.comparison(8, hospitals)
    if hospitals == 16:
        cells += adaptive.against_aggregation(8) + adaptive.with_accomplices(8)
        cells += adaptive.in_chosen_rounds(8)
    scenarios = [Scenario.from_mapping(cell.scenario(BASE, 0)) for cell in cells]
    assert all(scenario.make_attack() is not None for scenario in scenarios)
    assert len({scenario.identity for scenario in scenarios}) == len(cells)
    assert len({cell.folder for cell in cells}) == len(cells)


def test_a_block_an_attacker_and_a_panel_a_mode(tmp_path: Path) -> None:
    from PIL import Image

    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lost = images.clone()
    lost[1] = torch.nan
    rows = {"true": images, "released, raw": lost}
    blocks = {"one": {"data lake": rows, "federation": rows}, "two": {"federation": rows}}
    path = draw_blocks(tmp_path / "blocks.png", blocks, 6)
    assert Image.open(path).width == 900
