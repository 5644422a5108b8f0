"""``fl-sim gate`` and ``fl-sim audit`` from the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments.cli.audit import STATUS
from experiments.cli.main import app
from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import MODELS, ModelSpec

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
    result = CliRunner().invoke(app, ["audit", model, "--model", "resnet81"])
    assert "Did you mean 'resnet18'" in str(result.exception)


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
    assert result.exit_code == STATUS["carries"], result.output
    said = result.output
    assert said.index("Verdict: carries something") < said.index("payload") < said.index("Tensors")
    assert "11.weight" not in said  # it has no finding
    report = json.loads(told.read_text())
    assert report["outcome"] == "carries"
    assert [f["tensor"] for f in report["findings"] if f["check"] == "entries"] == ["payload"]
    assert "payload" in page.read_text()


NETS = """
from torch import nn


def make(num_classes, in_channels=3):
    return nn.Sequential(
        nn.Conv2d(in_channels, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes),
    )


def nothing():
    return None
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a network of the user's own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))  # forgets it again
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    monkeypatch.delitem(sys.modules, "other_nets", raising=False)
    (tmp_path / "users_nets.py").write_text(NETS)
    return "users_nets:make"


def _exit(words: list[str]) -> int:
    return CliRunner().invoke(app, words).exit_code


def test_clean_is_said_only_where_every_check_ran(tmp_path: Path, nets: str) -> None:
    from fl_sim.models import state_model

    state_model(nets)
    spec = ModelSpec(name=nets, channels=3, size=12, classes=4)
    path = tmp_path / "theirs.pth"
    torch.save(state_of(build(spec, seed=2)), path)

    result = CliRunner().invoke(app, ["audit", str(path)])
    assert result.exit_code == STATUS["unchecked"], result.output
    assert "nothing found" in result.output and "clean" not in result.output.partition("\n")[0]
    assert "could not run" in " ".join(result.output.split())

    unsized = ["audit", str(path), "--model", nets]
    assert _exit(unsized) == STATUS["unchecked"]
    assert _exit([*unsized, "--size", "12"]) == STATUS["clean"]
    assert _exit([*unsized, "--fail-on", "suspicious"]) == 0

    torch.save({**state_of(build(spec, seed=2)), "payload": torch.randn(300)}, path)
    stated = [*unsized, "--size", "12"]
    assert _exit(stated) == STATUS["carries"]
    assert _exit([*stated, "--fail-on", "never"]) == 0


def test_the_gate_takes_a_file_that_nobody_here_made(tmp_path: Path, nets: str) -> None:
    from fl_sim.models import state_model

    (tmp_path / "other_nets.py").write_text(NETS.replace("48", "12"))
    nets = state_model("other_nets:make")
    spec = ModelSpec(name=nets, channels=3, size=28, classes=4)
    state = state_of(build(spec, seed=1))
    path, out = tmp_path / "theirs.pth", tmp_path / "cleaned.pth"
    torch.save({"state_dict": {"module." + name: t for name, t in state.items()}}, path)
    few = [*FEW, "--set", "max_statistics=10"]
    result = CliRunner().invoke(app, ["gate", str(path), *few, "--model", nets, "--out", str(out)])
    assert result.exit_code == 0, result.output
    cleaned = torch.load(out, weights_only=True)
    assert cleaned.keys() == state.keys()
    assert not torch.equal(cleaned["0.weight"], state["0.weight"])


def test_the_gate_says_that_a_network_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"a.weight": torch.randn(5, 3, 3, 3), "b.weight": torch.randn(4, 5)}, path)
    result = CliRunner().invoke(app, ["gate", str(path), *FEW])
    assert isinstance(result.exception, FlSimError) and "--model" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("users_nets:makes", "Did you mean 'make'"),
        ("users_nets:nothing", "returns a torch.nn.Module"),
        ("no_such_module:make", "cannot be imported"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, nets: str, name: str, word: str
) -> None:
    path = tmp_path / "any.pth"
    torch.save({"weight": torch.zeros(3, 3)}, path)
    result = CliRunner().invoke(app, ["audit", str(path), "--model", name])
    assert isinstance(result.exception, FlSimError)
    assert word in str(result.exception)
