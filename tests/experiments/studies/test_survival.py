"""What survived of a payload: rows from a run's table, heat maps from its files, a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.run.result import Result
from experiments.run.start import run
from experiments.studies.survival_by_layer import (
    draw_survival,
    survival_by_layer,
    survival_by_plane,
    survival_by_stage,
)
from fl_sim.errors import FlSimError

SCENARIO: dict[str, Any] = {
    "mode": "centralized",
    "dataset": "phantoms",
    "model": "cnn",
    "attack": {
        "name": "dec",
        "images": 4,
        "codec": "png",
        "carrier": {"name": "bit_plane", "first": 12, "bits": 6},
    },
    "defense": {"name": "lwlrd", "epochs": 1},
    "attacker": {"restorations": ()},
    "training": {"epochs": 1},
    "measure": {"scratch_epochs": 0},
    "data": {"train_images": 40, "test_images": 30, "images": 20},
    "threads": 1,
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(SCENARIO, tmp_path_factory.mktemp("survival") / "run")


def test_higher_bits_survive_more(attacked: Result) -> None:
    layers = survival_by_layer(attacked.table)
    bits = [f"bit {bit}" for bit in range(12, 18)]
    assert list(layers.columns) == ["release"] and set(bits) < set(layers.index)
    wrong = layers.loc[bits, "release"].to_numpy()
    assert wrong[0] > 0.2 and wrong[-1] < wrong[0] / 2 and (np.diff(wrong) < 0.02).all()
    planes = survival_by_plane(attacked.out)
    assert planes is not None and [*planes.columns] == [*range(12, 18)]
    assert set(planes.index) == set(layers.index) - set(bits)
    numbers = [int(name.partition(".")[0]) for name in planes.index]
    assert numbers == sorted(numbers)  # in forward order
    for name in planes.index:  # each element has all the bits
        assert planes.loc[name].mean() == pytest.approx(layers.loc[name, "release"], abs=1e-6)


def test_lines_are_what_arrived_at_each_stage(attacked: Result) -> None:
    lines = survival_by_stage(attacked.table).set_index("stage")
    assert list(lines.index) == ["upload", "release"]
    assert lines.loc["upload", "images_intact"] == 4
    assert lines.loc["upload", "bit_error_rate"] == 0 < lines.loc["release", "bit_error_rate"]
    assert lines.loc["release", "bytes_delivered"] < lines.loc["upload", "bytes_delivered"]


def test_lines_add_up_several_attackers() -> None:
    rows = [
        (stage, metric, value)
        for stage, intact, wrong in (
            ("release", 2, 0.2),
            ("release:0", 1, 0.1),
            ("release:3", 3, 0.3),
        )
        for metric, value in (("images_intact", intact), ("bit_error_rate", wrong))
    ]
    table = pd.DataFrame(rows, columns=["stage", "metric", "value"])
    lines = survival_by_stage(table.assign(extraction="-", round=1))
    assert lines.to_dict("records") == [
        {"round": 1, "stage": "release", "images_intact": 4, "bit_error_rate": pytest.approx(0.2)}
    ]


def test_a_picture_of_any_run_with_a_carrier(attacked: Result, tmp_path: Path) -> None:
    assert draw_survival(attacked.out, tmp_path / "a.png").stat().st_size > 20_000
    with pytest.raises(FlSimError, match="is not the folder of a run"):
        draw_survival(tmp_path, tmp_path / "b.png")


def test_a_payload_for_an_average_is_followed_by_layer(tmp_path: Path) -> None:
    federation = {"hospitals": 2, "rounds": 1, "engine": "inprocess", "malicious": [1]}
    attack = {**SCENARIO["attack"], "amplify": True, "carrier": {"name": "qim", "order": "late"}}
    scenario = {**SCENARIO, "mode": "federated", "federation": federation, "attack": attack}
    result = run(scenario, tmp_path / "run")
    layers = survival_by_layer(result.table)
    assert list(layers.columns) == ["aggregate", "release"] and len(layers) > 0
    assert survival_by_plane(result.out) is None
    rows = result.table[result.table["metric"] == "bit_error_rate"].set_index("stage")["value"]
    assert rows["upload"] > 0.3 > rows["aggregate"]
    draw_survival(result.out, tmp_path / "survival.png")


def test_an_attack_without_a_carrier_has_nothing_to_draw(tmp_path: Path) -> None:
    attack = {"name": "transpose", "images": 4}
    result = run({**SCENARIO, "attack": attack}, tmp_path / "run")
    with pytest.raises(FlSimError, match="sends no payload"):
        draw_survival(result.out, tmp_path / "survival.png")
