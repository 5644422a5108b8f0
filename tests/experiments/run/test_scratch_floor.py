"""The floor of utility from scratch: how it is trained, and what it is kept under."""

from pathlib import Path
from typing import Any

import pytest

from experiments.run.identity import digest_of
from experiments.run.owner import DEFAULT_THREADS
from experiments.run.scenario import Scenario
from experiments.run.scratch_floor import _training, floor_ingredients
from experiments.run.start import run
from tests.experiments.run_kit import CENTRALIZED

DP = {"epochs": 2.0, "dp": {"noise_multiplier": 1.0}}


def _scenario(**values: Any) -> Scenario:
    return Scenario.create(**{**CENTRALIZED, **values})


def test_it_is_trained_as_the_scenario_for_its_own_epochs_and_never_privately() -> None:
    scenario = _scenario(training=DP, measure={"scratch_epochs": 7})
    training = _training(scenario)
    assert scenario.training.dp is not None and training.dp is None
    assert training.epochs == 7.0
    assert training.batch_size == scenario.training.batch_size


def test_what_it_depends_on_names_threads_device_data_and_network() -> None:
    def digest(files: str = "a", device: str = "cpu", **values: Any) -> str:
        return digest_of(floor_ingredients(_scenario(**values), [files], device))

    plain = digest()
    assert digest(threads=DEFAULT_THREADS) == plain and digest(threads=DEFAULT_THREADS + 1) != plain
    changed = [
        *(digest(files="b"), digest(device="cuda"), digest(seed=9)),
        *(digest(measure={"scratch_epochs": 7}), digest(training={"epochs": 1.0, "batch_size": 7})),
    ]
    assert len({plain, *changed}) == len(changed) + 1
    assert digest(attack=None) == plain


@pytest.mark.parametrize("epochs", [0, 1])
def test_its_rows_stand_beside_the_release(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    scenario = {**CENTRALIZED, "defense": None, "measure": {"scratch_epochs": epochs}}
    table = run(scenario, tmp_path / "out", progress=False).table
    rows = table[table["metric"].str.endswith("_floor_scratch")]
    assert set(rows["stage"]) == ({"release"} if epochs else set())
    if epochs:
        values = dict(zip(rows["metric"], rows["value"], strict=True))
        assert 0 <= values["auc_floor_scratch"] <= 1
