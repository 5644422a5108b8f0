"""Grid files: what they expand to, and what is said where one is wrong."""

from pathlib import Path
from typing import Any

import pytest

from experiments.run.shipped import shipped
from experiments.sweep.grid import Grid
from fl_sim.errors import FlSimError

SCENARIO: dict[str, Any] = {
    "mode": "centralized",
    "dataset": {"name": "phantoms", "size": 16},
    "model": "cnn",
    "training": {"batch_size": 32, "epochs": 2},
}


def _grid(**parts: Any) -> Grid:
    return Grid.from_mapping({"scenario": SCENARIO, **parts})


def _labels(grid: Grid) -> list[tuple[str, ...]]:
    return [(*cell.labels.values(), str(cell.scenario.seed)) for cell in grid.cells]


def test_a_grid_is_the_product_of_its_axes_and_seeds() -> None:
    few = {"label": "few", "name": "transpose", "images": 4}
    grid = _grid(grid={"attack": [few, "none"], "defense": ["none", "lwlrd"]}, seeds=[0, 5])
    assert grid.axes == ("attack", "defense")
    assert len(grid.cells) == 8
    assert _labels(grid)[:3] == [("few", "none", "0"), ("few", "none", "5"), ("few", "lwlrd", "0")]
    first = grid.cells[0].scenario
    assert first.attack is not None and first.attack.settings["images"] == 4
    assert first.defense is None and first.threads == 1 and first.device == "cpu"


def test_an_axis_may_be_a_key_inside_a_table_quoted_or_not() -> None:
    for axes in ({"training.epochs": [1, 2.5]}, {"training": {"epochs": [1, 2.5]}}):
        grid = _grid(grid=axes)
        assert [c.scenario.training.epochs for c in grid.cells] == [1, 2.5]
        assert all(c.scenario.training.batch_size == 32 for c in grid.cells)
        assert _labels(grid) == [("1", "0"), ("2.5", "0")]
    # A key inside a component that another axis varies, and a label for a number.
    inner = {"attack": ["none", "transpose"], "attack.images": [8, {"label": "many", "value": 16}]}
    grid = _grid(grid=inner)
    assert grid.repeated == 1  # a network that nobody attacks has no number of images
    images = [c.scenario.attack.settings["images"] if c.scenario.attack else 0 for c in grid.cells]
    assert images == [0, 8, 16]
    assert _labels(grid)[-1] == ("transpose", "many", "0")


def test_a_variant_changes_keys_together_and_sections_are_merged() -> None:
    federation = {"hospitals": 2, "rounds": 1}
    lake = {"label": "data lake", "mode": "centralized"}
    two = {"label": "two", "mode": "federated", "federation": federation, "training.epochs": 1}
    grid = _grid(grid={"variant": [lake, two], "training": [{"batch_size": 16}]})
    assert _labels(grid) == [("data lake", "batch_size=16", "0"), ("two", "batch_size=16", "0")]
    modes = [cell.scenario.mode for cell in grid.cells]
    assert modes == ["centralized", "federated"]
    assert [c.scenario.training.epochs for c in grid.cells] == [2, 1]
    assert {c.scenario.training.batch_size for c in grid.cells} == {16}
    last = grid.cells[1].scenario.federation
    assert last is not None and last.engine.engine == "inprocess"


def test_cells_are_added_and_left_out() -> None:
    grid = _grid(
        grid={"attack": ["none", "transpose"], "defense": ["none", "lwlrd"]},
        exclude=[{"attack": "none", "defense": ["lwlrd"]}],
        cells=[{"label": "longer", "attack": "transpose", "training": {"epochs": 9}}],
    )
    assert grid.axes == ("attack", "defense", "variant", "training.epochs")
    assert _labels(grid) == [
        ("none", "none", "-", "2", "0"),
        ("transpose", "none", "-", "2", "0"),
        ("transpose", "lwlrd", "-", "2", "0"),
        ("transpose", "-", "longer", "9", "0"),
    ]


def test_a_base_is_a_shipped_scenario_or_a_file_beside_the_grid(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('mode = "centralized"\ndataset = "phantoms"\nmodel = "mlp"')
    (tmp_path / "g.toml").write_text('base = "base.toml"\n[grid]\nmodel = ["cnn", "mlp"]\n')
    grid = Grid.of(tmp_path / "g.toml", overrides=["training.epochs=3", "seeds=[4]"])
    assert grid.name == "g"
    assert [(c.scenario.model.name, c.scenario.training.epochs) for c in grid.cells] == [
        ("cnn", 3),
        ("mlp", 3),
    ]
    assert {c.scenario.seed for c in grid.cells} == {4}
    shipped = Grid.from_mapping({"base": "demo-centralized"})
    assert len(shipped.cells) == 1 and shipped.cells[0].scenario.attack is not None


@pytest.mark.parametrize("name", shipped("grid"))
def test_shipped_grids_expand_and_say_what_they_are(name: str) -> None:
    grid = Grid.of(name)
    assert grid.name == name and len(grid.cells) > 10
    assert shipped("grid")[name].read_text(encoding="utf-8").startswith("# ")


def test_a_cell_is_named_by_its_content() -> None:
    small = _grid(grid={"defense": ["lwlrd"]})
    large = _grid(grid={"defense": ["none", "lwlrd"], "training.epochs": [2, 3]})
    assert small.cells[0].name in {cell.name for cell in large.cells}
    assert len({cell.name for cell in large.cells}) == 4


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"seds": [0]}, "The grid has no key 'seds'. Did you mean 'seeds'"),
        ({"grid": {"defence": ["none"]}}, "no key 'defence'. Did you mean 'defense'"),
        ({"grid": {"defense": "none"}}, "should be a list"),
        ({"grid": {"defense": []}}, "should be a list"),
        ({"grid": {"seed": [0, 1]}}, "seeds = \\[0, 1, 2\\]"),
        ({"grid": {"defense": ["none", "none"]}}, "two values called 'none'"),
        ({"grid": {"defense": [{"label": 3, "name": "lwlrd"}]}}, "the label 3"),
        ({"grid": {"variant": ["a"]}}, "should be a table"),
        ({"grid": {"defense": ["none"]}, "exclude": [{"defence": "none"}]}, "mean 'defense'"),
        ({"grid": {"defense": ["lwlrd"]}, "exclude": [{"defense": "lwlr"}]}, "mean 'lwlrd'"),
        ({"grid": {"defense": ["none"]}, "exclude": [{"defense": "none"}]}, "leaves none"),
        ({"grid": {"defense": ["none"]}, "exclude": [{}]}, "is empty"),
        ({"cells": [{"atack": "none"}]}, "\\[\\[cells\\]\\] has no key 'atack'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"base": "demo-centralised"}, "Did you mean 'demo-centralized'"),
        ({"base": "nowhere.toml"}, "does not exist"),
        ({"scenario": {**SCENARIO, "threads": 2}}, "one thread each"),
        ({"scenario": {**SCENARIO, "seed": 2}}, "seeds = "),
    ],
)
def test_what_is_wrong_with_a_grid_is_one_sentence(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(FlSimError, match=words) as raised:
        _grid(**parts)
    assert "\n" not in str(raised.value)


def test_all_impossible_cells_are_told_at_once() -> None:
    defenses = ["none", "lwlrdd", {"name": "gaussian_noise", "sigm": 1}]
    with pytest.raises(FlSimError) as raised:
        _grid(grid={"defense": defenses, "attack": ["none", "transpose"]}, seeds=[0, 1])
    message = str(raised.value)
    assert message.startswith("4 of 6 cells of the grid are impossible, and nothing was run:")
    assert "'lwlrd'" in message and "'sigma'" in message
    assert len(message.splitlines()) == 3


def test_an_override_reaches_every_cell_and_none_is_lost() -> None:
    values = {"scenario": SCENARIO, "grid": {"attack": ["transpose", "none"]}}
    grid = Grid.from_mapping(values, overrides=["attack.images=7"])
    first = grid.cells[0].scenario.attack
    assert first is not None and first.settings["images"] == 7
    assert grid.cells[1].scenario.attack is None
    with pytest.raises(FlSimError, match="would undo the axis 'attack'"):
        Grid.from_mapping(values, overrides=["attack=none"])
    with pytest.raises(FlSimError, match="a sweep has seeds"):
        Grid.from_mapping(values, overrides=["seed=1"])
