"""The study of adaptive attackers, small: a table and figures."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.studies import adaptive
from experiments.studies.adaptive import BEST, STUDY, Cell
from experiments.studies.base import How
from experiments.sweep.grid import Grid
from experiments.tables.pictures import draw_blocks
from fl_sim.errors import FlSimError
from fl_sim.results import STAGES
from tests.network_kit import DEEP

BASE: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 8},
    "model": DEEP,
    "defense": {"name": "lwlrd", "epochs": 1},
    "training": {"epochs": 0.5, "batch_size": 16},
    "data": {"train_images": 32, "test_images": 20, "images": 20},
}


def test_dead_weights_let_everything_through_and_low_bits_nothing(tmp_path: Path) -> None:
    alone, averaged = adaptive.attackers(4), adaptive.attackers(4, 5)
    five = {"hospitals": 5, "rounds": 1}
    together = {**five, "malicious": (0, 1)}
    federated = [Cell("low bits", averaged["low bits"], five)]
    for kind in ("repeat", "split"):
        federated.append(Cell(BEST, averaged[BEST], {**together, "collusion": kind}, kind))
    grids = {
        "lake": adaptive.grid([Cell("low bits", alone["low bits"])], **BASE),
        "federated": adaptive.grid(federated, **BASE),
    }
    frame = STUDY.run(grids, tmp_path, How(workers=0))
    assert len(frame) == 2 + 3 * 3
    rows = frame.set_index(["mode", "attacker", "variant", "stage"]).sort_index()
    intact, lake = rows["images_intact"], ("data lake", "low bits", "")
    assert intact[*lake, "upload"] == 4 and intact[*lake, "release"] == 0
    assert intact["fedavg, 5 hospitals", "low bits", "", "release"] == 0
    # Written for the average: illegible in the upload, whole in what is broadcast after LWLRD.
    both = {kind: rows.loc["fedavg, 5 hospitals", BEST, kind] for kind in ("repeat", "split")}
    stages = [stage for stage in STAGES if stage != "door"]  # these hospitals have none
    arrived = [[rows["images_intact"][stage] for stage in stages] for rows in both.values()]
    assert arrived == [[0, 4, 4], [0, 8, 8]]
    once, twice = (rows["bytes_of_run"]["release"] for rows in both.values())
    assert twice > 1.5 * once
    assert (tmp_path / "adaptive.png").stat().st_size > 5_000
    kept = {path.name for path in tmp_path.glob("federated/cells/*/artifacts/*")}
    assert "release.safetensors" in kept
    assert not any(name.startswith(("upload", "aggregate")) for name in kept)
    assert len(pd.read_csv(tmp_path / "adaptive.csv")) == len(frame)


def test_pictures_are_of_the_runs_that_are_there(tmp_path: Path) -> None:
    assert adaptive.pictured(tmp_path) == {}
    with pytest.raises(FlSimError, match="is not the folder of a run"):
        adaptive.draw_overview(tmp_path / "overview.png", {("a", "b"): tmp_path})


@pytest.mark.parametrize("hospitals", [1, 4, 16])
def test_every_attacker_makes_a_scenario(hospitals: int) -> None:
    cells = adaptive.comparison(8, hospitals)
    if hospitals == 16:
        cells += adaptive.against_aggregation(8) + adaptive.with_accomplices(8)
        cells += adaptive.in_chosen_rounds(8)
    grid = Grid.of(adaptive.grid(cells, **BASE))
    assert all(cell.scenario.make_attack() is not None for cell in grid.cells)
    assert len(grid.cells) == len(cells)


def test_a_block_an_attacker_and_a_panel_a_mode(tmp_path: Path) -> None:
    from PIL import Image

    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lost = images.clone()
    lost[1] = torch.nan
    rows = {"true": images, "released, raw": lost}
    blocks = {"one": {"data lake": rows, "federation": rows}, "two": {"federation": rows}}
    path = draw_blocks(tmp_path / "blocks.png", blocks, 6)
    assert Image.open(path).width == 900
