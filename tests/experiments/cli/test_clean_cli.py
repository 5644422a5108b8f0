"""``fl-sim clean``: any defence on any file."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from typer.testing import CliRunner

from experiments.cli.main import app
from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError

FEW = ["--dataset", "phantoms", "--images", "40"]


def _clean(*words: object) -> str:
    result = CliRunner().invoke(app, ["clean", *map(str, words)])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": resnet18(num_classes=4).state_dict(), "epoch": 3}, path)
    return path


def test_a_checkpoint_that_nobody_here_made_is_cleaned(theirs: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out.pth", tmp_path / "told.json"
    said = _clean(
        theirs,
        *FEW,
        "--defense",
        "gaussian_noise",
        "--set",
        "sigma=0.01",
        "--out",
        out,
        "--json",
        told,
        "--normalize",
        "imagenet",
    )
    before = read_checkpoint(theirs).state
    after = torch.load(out, weights_only=True)
    assert after.keys() == before.keys()
    moved = (after["conv1.weight"] - before["conv1.weight"]).std()
    assert 0.009 < float(moved) < 0.011
    report = json.loads(told.read_text())
    assert set(report["before"]) == set(report["after"]) >= {"auc", "accuracy"}
    assert f"auc: {report['before']['auc']:.3f} before" in said and "resnet18" in said


def test_entries_that_the_network_does_not_have_are_told_of(theirs: Path, tmp_path: Path) -> None:
    state = read_checkpoint(theirs).state | {"more": torch.ones(3)}
    torch.save(state, theirs)
    noise = ["--defense", "gaussian_noise", "--out", tmp_path / "out.pth"]
    assert "1 entries leave that the network does not have (more)" in _clean(theirs, *FEW, *noise)
    assert "more" in torch.load(tmp_path / "out.pth", weights_only=True)
    removal = ["--defense", "entry_removal", "--out", tmp_path / "out.pth"]
    assert "leave that" not in _clean(theirs, *FEW, *removal)
    assert "more" not in torch.load(tmp_path / "out.pth", weights_only=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--defense", "lwlrdd"], r"lwlrdd.*lwlrd"),
        (["--set", "epoch=1", "--defense", "lwlrd"], r"no key 'epoch'.*epochs"),
        (["--normalize", "imagenett"], "imagenet"),
        (["--model", "resnet34"], "lacks"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_file(
    words: list[str], said: str, theirs: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlSimError, match=said):
        _clean(theirs, *FEW, *words, "--out", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_another_number_of_outputs_is_told(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(resnet18(num_classes=9).state_dict(), path)
    with pytest.raises(FlSimError, match=r"9 outputs, and the task of phantoms has 4"):
        _clean(path, *FEW, "--out", tmp_path / "out.pth")


def test_a_network_of_ones_own_is_cleaned_by_its_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def make(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU(), nn.Flatten(),"
        " nn.Linear(256, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    make = nn.Sequential(nn.Conv2d(3, 4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    torch.save(make.state_dict(), "mine.pth")
    said = _clean(
        "mine.pth", *FEW, "--model", "own_nets:make", "--set", "steps=2", "--out", "o.pth"
    )
    assert "consistent_distillation" in said
    left = torch.load("o.pth", weights_only=True)
    assert not torch.equal(left["0.weight"], make.state_dict()["0.weight"])
