"""The cap of a release in a run's table: in a data lake, by round in a federation, and in words."""

import math
from pathlib import Path
from typing import Any

import pytest

from experiments.report.cells import plain_cell
from experiments.run.result import Result
from experiments.run.start import run
from experiments.tables.console import compact
from fl_sim.artifact import read_artifact
from fl_sim.defenses.ledger import tensor_bits
from fl_sim.statistics import Interval
from tests.experiments.run_kit import CENTRALIZED, FEDERATED

NONE = {**CENTRALIZED, "defense": None}
CONTROL = {"name": "trusted_training", "images": "held_out", "max_steps": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))


def _rows(result: Result, metric: str) -> dict[int, float]:
    table = result.table
    rows = table[(table["metric"] == metric) & (table["stage"] == "release")]
    return dict(zip(rows["round"], rows["value"], strict=True))


def _run(scenario: dict[str, Any], out: Path) -> Result:
    return run({**scenario, "measure": {"scratch_epochs": 0}}, out, progress=False)


def test_a_lake_has_the_cap_of_its_defence(tmp_path: Path) -> None:
    whole = _run(NONE, tmp_path / "none")
    everything = tensor_bits(read_artifact(whole.artifact).state) / 8
    assert _rows(whole, "cap_bytes") == {0: everything}
    assert _rows(whole, "cap_bytes_total") == {}
    control = _run({**CENTRALIZED, "defense": CONTROL}, tmp_path / "control")
    assert _rows(control, "cap_bytes") == {0: 0.0}
    shown = compact(control.summary())
    assert list(shown["cap\nbytes"]) == ["-", "0"]


def test_what_the_network_does_not_have_is_counted_while_it_leaves(tmp_path: Path) -> None:
    hidden = {"name": "dec", "images": 2, "codec": "png", "carrier": {"name": "entries"}}
    caps = [
        _rows(
            _run({**NONE, "attack": hidden, "defense": chosen}, tmp_path / str(number)), "cap_bytes"
        )
        for number, chosen in enumerate((None, "entry_removal"))
    ]
    assert caps[0][0] > caps[1][0] + 100


def test_every_round_of_a_federation_lets_its_own_pass(tmp_path: Path) -> None:
    scenario = {**FEDERATED, "defense": CONTROL}
    scenario["federation"] = {**FEDERATED["federation"], "defend": "last"}
    result = _run(scenario, tmp_path / "last")
    everything = tensor_bits(read_artifact(result.artifact).state) / 8
    assert _rows(result, "cap_bytes") == {1: everything, 2: everything, 3: 0.0}
    assert _rows(result, "cap_bytes_total") == {
        1: everything,
        2: 2 * everything,
        3: 2 * everything,
    }


def test_a_cap_without_end_is_said_in_words() -> None:
    endless = Interval(math.inf, math.inf, math.inf, 1, 0)
    assert plain_cell(endless, "cap_bytes").text == "unbounded"
    assert plain_cell(Interval(64.0, 64.0, 64.0, 1, 0), "cap_bytes").text == "64 B"
