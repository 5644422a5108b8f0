"""Training that starts from a person's own weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fl_sim.case import CaseSettings, open_case
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.models import build


def _case(weights: Path | None, **model: object) -> CaseSettings:
    settings = {"weights": None if weights is None else str(weights), **model}
    return CaseSettings(
        dataset=Component(name="phantoms"), model=Component(name="resnet18", settings=settings)
    )


def _saved(path: Path, model: nn.Module, **further: torch.Tensor) -> Path:
    torch.save(model.state_dict() | further, path)
    return path


def test_a_checkpoint_s_weights_are_what_training_starts_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = resnet18(num_classes=4)
    case = open_case(_case(_saved(tmp_path / "own.pth", own)), None)
    found = case.initial(3)
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, own.state_dict()[name]), name
    assert found.said == "Training starts from own.pth."
    assert [file.name for file in case.files] == ["own.pth"] and len(case.files[0].sha256) == 64


def test_a_last_layer_of_other_outputs_begins_anew_and_that_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = resnet18(num_classes=1000)
    case = open_case(_case(_saved(tmp_path / "a.pth", own), normalize="imagenet"), None)
    found = case.initial(3)
    assert torch.equal(found.model.get_parameter("conv1.weight"), own.conv1.weight)
    assert torch.equal(
        found.model.get_parameter("fc.weight"), build(case.spec, 3).get_parameter("fc.weight")
    )
    assert "except for fc.weight, fc.bias" in found.said
    assert case.spec.mean == (0.485, 0.456, 0.406)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    other = _saved(tmp_path / "b.pth", nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(FlSimError, match=r"b\.pth is not of the network 'resnet18'"):
        open_case(_case(other), None).initial(0)
    wide = resnet18(num_classes=4)
    wide.conv1 = nn.Conv2d(3, 64, 5, bias=False)
    with pytest.raises(FlSimError, match=r"conv1\.weight' in another shape"):
        open_case(_case(_saved(tmp_path / "c.pth", wide)), None).initial(0)
    with pytest.raises(FlSimError, match=r"weights: .*nowhere\.pth does not exist"):
        open_case(_case(tmp_path / "nowhere.pth"), None)
