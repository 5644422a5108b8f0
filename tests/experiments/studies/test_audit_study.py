"""The study of auditor and gate: a clean model passes, an attacked one is flagged, and again."""

from pathlib import Path
from typing import Any

import pytest

from experiments.studies import audit_rates
from experiments.studies.audit_rates import CLEAN, DISTILLING, GATE, Cell, draw, rates, study
from fl_sim.auditing.gate import GateSettings, pass_gate
from fl_sim.case import Case, CaseSettings, open_case
from fl_sim.component import Component


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the study's cases with images of 16 pixels."""

    def open_small(settings: CaseSettings, data_root: Path | None) -> Case:
        dataset = Component(name=settings.dataset.name, settings={"size": 16})
        return open_case(settings.model_copy(update={"dataset": dataset}), data_root)

    monkeypatch.setattr(audit_rates, "open_case", open_small)


@pytest.fixture(autouse=True)
def _short_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate's student learn for a tenth of the steps: it never sees the weights anyway."""

    def pass_soon(artifact: Any, held_out: Any, task: Any, settings: GateSettings, at: Any) -> Any:
        if settings.defense is not None:
            assert settings.defense.name == DISTILLING
            short = settings.defense.model_copy(update={"settings": {"steps": 60}})
            settings = settings.model_copy(update={"defense": short})
        return pass_gate(artifact, held_out, task, settings, at)

    monkeypatch.setattr(audit_rates, "pass_gate", pass_soon)


@pytest.mark.slow
def test_models_are_judged_once_and_rates_have_intervals(tmp_path: Path) -> None:
    cells = [Cell("phantoms", "cnn", 0, "adam", attack) for attack in (CLEAN, "signs", "lattices")]
    rows = study(cells, tmp_path)
    assert list(rows["gate"]) == ["clean", "refused", "clean"]
    assert "audit" in rows["gate_reasons"][1]
    # Dithered lattices pass the gate, which leaves nothing of them, however it cleans.
    assert rows["intact"][2] == 1
    for how in (GATE, DISTILLING):
        assert rows[f"intact_after_{how}"][2] == 0
        assert rows[f"found_after_{how}"][2] < 0.2
    written = (tmp_path / "audit_models.csv").stat().st_mtime_ns
    assert len(study(cells, tmp_path)) == 3
    assert (tmp_path / "audit_models.csv").stat().st_mtime_ns == written
    table = rates(rows)
    row = table[(table["attack"] == "signs") & (table["detector"] == "gate")].iloc[0]
    assert row["flagged"] == row["models"] == 1
    assert row["low"] < row["rate"] <= row["high"]
    assert draw(tmp_path / "audit.png", table).stat().st_size > 5_000
