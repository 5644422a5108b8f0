"""The study of sealed heads, on phantoms: rows are kept, resumed, become tables and pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.studies import rhe
from experiments.studies.rhe.arms import Cell, victims
from experiments.studies.rhe.stranger import changed_entries
from experiments.studies.rhe.world import World, world_of
from fl_sim.artifact import write_artifact
from fl_sim.errors import FlSimError
from fl_sim.reconstruction.arms import ARMS, CLEAR
from fl_sim.sealing.heads import features_of, find_head

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rhe")


@pytest.fixture(scope="module")
def world(out: Path) -> World:
    return world_of(out, None, "phantoms")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [Cell(arm, 1, 150) for arm in ARMS] + [Cell(CLEAR, 1, 60, "convolutions")]


@pytest.fixture(scope="module")
def rows(world: World, cells: list[Cell], out: Path):
    with pytest.MonkeyPatch.context() as few:
        few.setattr("experiments.studies.rhe.world.MOST_VICTIMS", 3)
        few.setattr("experiments.studies.rhe.arms.DRAWS", 40)
        few.setattr("experiments.studies.rhe.arms.DECOYS", {"weights": 20, "decisions": 3})
        return rhe.measure(world, cells, SEEDS, out, results=out / "none")


def test_every_arm_has_a_row_a_seed(rows, cells: list[Cell]) -> None:
    assert len(rows) == len(cells) * len(SEEDS)
    shares = rows[["tpr", "tpr_strict", "identified", "chance", "auc"]].to_numpy(dtype=float)
    assert ((shares >= 0) & (shares <= 1)).all()
    private = rows[rows["arm"] == "DP head, epsilon 10"]
    assert (private["epsilon"].astype(float) <= 10).all()
    assert (rows[rows["arm"] == "mean of 3 hospitals"]["victims"] > 1).all()


def test_a_sealed_head_leaves_the_same_guess_for_all_victims(rows) -> None:
    ridge = rows[rows["reconstructor"] == "ridge"]
    sealed, clear = (ridge[ridge["arm"] == arm] for arm in ("sealed head", CLEAR))
    assert list(sealed["auc"]) == list(clear["auc"])
    assert sealed["identified"].max() <= 1 / sealed["victims"].min()  # one guess for all
    strangers = rows[rows["arm"] == "stranger's base, sealed head"]
    assert list(strangers["mse_own"]) == list(sealed["mse_own"])


def test_rows_that_are_kept_are_not_measured_again(
    rows, world: World, cells: list[Cell], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[int]]] = []

    def measured(bench, cell, seeds):
        asked.append((cell.arm, list(seeds)))
        return [{}], torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr(rhe, "rows_of_cell", measured)
    monkeypatch.setattr(rhe, "write_table", lambda *arguments: None)
    again = rhe.measure(world, cells, SEEDS, out, results=out / "none")
    assert asked == [] and len(again) == len(rows)
    rhe.measure(world, cells[:1], (*SEEDS, 2), out, results=out / "none")
    assert asked == [(cells[0].arm, [2])]
    rhe.measure(world, cells[:1], SEEDS, out / "elsewhere", results=out)
    assert asked == [(cells[0].arm, [2])]


def test_the_table_has_intervals_and_the_pictures_a_row_an_arm(
    rows, world: World, out: Path
) -> None:
    rhe.conclude(out, rows, world)
    table = rhe.tabulate(rows)
    assert list(table["seeds"]) == [2] * len(table)
    assert (table["tpr low"] <= table["tpr"] + 1e-9).all() and (
        table["tpr"] <= table["tpr high"]
    ).all()
    for name in ("rhe.csv", "rhe.json", "rhe.png", "reconstructed.png"):
        assert (out / name).stat().st_size > 300


def test_nobody_s_images_are_another_s(world: World) -> None:
    settings = Cell(CLEAR, 2, 10).settings(world.classes)
    sets = world.victims(settings, 0)
    assert len(np.unique(sets)) == sets.size
    known = {image.numpy().tobytes() for image in world.attacker.pixels}
    known |= {image.numpy().tobytes() for image in world.public.pixels}
    assert not any(world.pool.pixels[row].numpy().tobytes() in known for row in sets.ravel())


def test_means_are_of_their_own_hospitals(world: World) -> None:
    single = Cell(CLEAR, 1, 10).settings(world.classes)
    heads, sets = victims(world, single.model_copy(update={"averaged": 3}), 0)
    # The same draw, one by one: three victims a mean.
    count = sets.shape[0] * 3
    own = world.victims(single.model_copy(update={"averaged": 3}), 0)[:count]
    assert set(sets[1]) == set(own[3:6].ravel()) and len(heads) == len(sets)
    labels = world.pool.labels[sets]
    assert (labels == np.repeat(np.arange(world.classes), 3)).all()


def test_the_base_is_read_from_its_file_the_next_time(world: World, out: Path) -> None:
    again = world_of(out, None, "phantoms")
    assert torch.equal(again.public.features, world.public.features)
    network = again.base.model()
    head = find_head(network, again.base.spec, 1)
    assert torch.equal(features_of(network, head, again.parts.public), world.public.features)


def test_every_entry_that_changes_is_counted(world: World, tmp_path: Path) -> None:
    spec, state = world.base.spec, world.base.state
    other = {name: value.clone() for name, value in state.items()}
    name = next(iter(other))
    other[name].view(-1)[-1] += 1
    write_artifact(tmp_path / "upload.safetensors", spec, state)
    write_artifact(tmp_path / "release.safetensors", spec, {**other, "more": torch.zeros(1)})
    assert changed_entries(tmp_path) == sorted(["more", name])


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(FlSimError, match="Did you mean 'freezing'"):
        rhe.command(parts=["freezin"])
