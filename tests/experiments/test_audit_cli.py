"""``fl-sim gate`` and ``fl-sim audit`` from the command line."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec

SPEC = ModelSpec(name="cnn", channels=3, size=12, classes=4)
FEW = ["--dataset", "phantoms", "--images", "64", "--set", "epochs=2", "--set", "max_unmoved=0.95"]


def test_gate_approves_and_writes_or_refuses(tmp_path: Path) -> None:
    state = state_of(build(SPEC, seed=1))
    model = write_artifact(tmp_path / "model.safetensors", SPEC, state)
    out, told = tmp_path / "cleaned.safetensors", tmp_path / "gate.json"
    words = ["gate", str(model), *FEW, "--out", str(out), "--json", str(told)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "Approved" in result.output
    cleaned = read_artifact(out)
    assert cleaned.spec == SPEC
    assert not torch.equal(cleaned.state["0.weight"], state["0.weight"])
    assert json.loads(told.read_text())["approved"] is True

    more = write_artifact(tmp_path / "more.safetensors", SPEC, {**state, "x": torch.zeros(3)})
    out.unlink()
    result = CliRunner().invoke(app, ["gate", str(more), *FEW, "--out", str(out)])
    assert result.exit_code == 1
    assert "Refused" in result.output and not out.exists()


def test_wrong_use_is_an_error_and_no_refusal(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.safetensors")
    for words in (["gate", missing, *FEW], ["audit", missing]):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, FlSimError)  # main() makes it exit code 2
    model = str(write_artifact(tmp_path / "m.safetensors", SPEC, state_of(build(SPEC))))
    result = CliRunner().invoke(app, ["gate", model, *FEW, "--defense", "lwlrdd"])
    assert "Did you mean 'lwlrd'" in str(result.exception)
    result = CliRunner().invoke(app, ["audit", model, "--model", "cnn"])
    assert "--classes" in str(result.exception)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_audit_prints_a_verdict_and_writes_reports(tmp_path: Path, kind: str) -> None:
    state = {**state_of(build(SPEC, seed=1)), "payload": torch.zeros(300, dtype=torch.uint8)}
    path = tmp_path / f"model.{kind}"
    if kind == "pth":
        torch.save({"state_dict": state}, path)
    else:
        write_artifact(path, SPEC, state)
    told, page = tmp_path / "audit.json", tmp_path / "audit.html"
    words = ["audit", str(path), "--json", str(told), "--html", str(page)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "Verdict: carries something" in result.output
    report = json.loads(told.read_text())
    assert report["verdict"] == "carries something"
    assert [f["tensor"] for f in report["findings"] if f["check"] == "entries"] == ["payload"]
    assert "payload" in page.read_text()
