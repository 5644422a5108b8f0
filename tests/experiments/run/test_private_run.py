"""Private training in both modes: what it spent is in the table, and batch norm is refused."""

from pathlib import Path
from typing import Any

import pytest

from experiments.run.start import run
from fl_sim.errors import FlSimError

BASE: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 8},
    "model": {"name": "cnn", "norm": "group"},
    "data": {"train_images": 60, "test_images": 20},
    "training": {"epochs": 1, "dp": {"target_epsilon": 4.0}},
    "measure": {"scratch_epochs": 0},
}
FEDERATED = {
    "mode": "federated",
    "federation": {"hospitals": 2, "malicious": [], "rounds": 2, "engine": "inprocess"},
}


@pytest.mark.parametrize("mode", [{"mode": "centralized"}, FEDERATED])
def test_what_training_spent_is_in_the_table(tmp_path: Path, mode: dict[str, Any]) -> None:
    table = run(BASE | mode, tmp_path).table
    spent = table[table.metric == "dp_epsilon"].sort_values("round")
    assert set(spent.stage) == {"upload"}
    assert len(spent) == (1 if mode["mode"] == "centralized" else 2)
    assert spent.value.is_monotonic_increasing
    assert 3.5 < spent.value.iloc[-1] <= 4.0


def test_batch_normalisation_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match=r'set \[model\] norm = "group"'):
        run(BASE | {"mode": "centralized", "model": "cnn"}, tmp_path)
