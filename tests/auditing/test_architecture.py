"""Networks are recognised by shapes and order, in both directions or not at all."""

from typing import Any

import pytest
import torch
from torch import nn

from fl_sim.artifact import write_artifact
from fl_sim.auditing.architecture import Statement, recognise
from fl_sim.auditing.auditor import audit, audit_file
from fl_sim.checkpoints import Checkpoint
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec

State = dict[str, torch.Tensor]


def _torchvision(name: str, classes: int = 7) -> State:
    """A state of torchvision's; only names and shapes count."""
    from torchvision.models import get_model

    with torch.device("meta"):
        own = get_model(name, num_classes=classes).state_dict()
    return {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in own.items()}


class _FourLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Linear(784, 1024)
        self.first = nn.Linear(1024, 1024)
        self.second = nn.Linear(1024, 1024)
        self.out = nn.Linear(1024, 10)


def _renamed(state: State, old: str, new: str) -> State:
    return {n.replace(old, new) if n.startswith(old) else n: t for n, t in state.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "densenet121", "mobilenet_v3_small"])
def test_networks_are_told_by_names(name: str) -> None:
    found = recognise(_torchvision(name))
    assert found is not None and not found.further
    assert (found.spec.name, found.spec.classes, found.spec.channels) == (name, 7, 3)
    assert not found.size_known


def test_other_names_are_told_by_order() -> None:
    state = _torchvision("resnet18")
    for changed in (
        {"backbone." + n: t for n, t in state.items()},
        _renamed(state, "fc.", "fc.1."),
        {n: t for n, t in state.items() if "num_batches" not in n},
        {n.replace(".", "/"): t for n, t in _renamed(state, "layer", "stage").items()},
    ):
        found = recognise(changed)
        assert found is not None and found.spec.name == "resnet18" and not found.further
    found = recognise(_FourLayers().state_dict())
    assert found is not None
    assert (found.spec.name, found.spec.size, found.spec.channels) == ("mlp", 28, 1)
    assert found.names["1.weight"] == "input_layer.weight"
    assert found.by_order


def test_a_larger_network_is_not_a_smaller_one_that_carries() -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    with torch.device("meta"):
        other = ResNet(BasicBlock, [2, 3, 5, 2], num_classes=7).state_dict()
    state = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in other.items()}
    assert recognise(state) is None
    report = audit(Checkpoint(state))
    assert "entries" in report.unchecked
    assert not any(f.check == "entries" for f in report.findings)


def test_what_is_beside_a_whole_network_is_further() -> None:
    state = _torchvision("resnet18")
    more = {**state, "layer4.2.conv1.weight": torch.zeros(512, 512, 3, 3), "x": torch.zeros(5)}
    found = recognise(more)
    assert found is not None
    assert found.spec.name == "resnet18"
    assert set(found.further) == {"layer4.2.conv1.weight", "x"}
    del more["conv1.weight"]
    assert recognise(more) is None


def test_statements_are_kept_to() -> None:
    state = _torchvision("resnet18")
    found = recognise(state, Statement(size=28))
    assert found is not None and found.size_known and found.spec.size == 28
    assert recognise(state, Statement(classes=5)) is None
    assert recognise(state, Statement("resnet34")) is None
    report = audit(Checkpoint(state), Statement("resnet34", size=28))
    assert any(f.check == "entries" and "lacks" in f.what for f in report.findings)


def test_what_a_file_says_of_itself_is_compared_with_what_it_holds(tmp_path: Any) -> None:
    spec = ModelSpec(name="cnn", channels=3, size=12, classes=4)
    state = state_of(build(spec, seed=1))
    honest = audit_file(write_artifact(tmp_path / "honest.safetensors", spec, state))
    assert honest.outcome == "clean", honest.findings
    lie = spec.model_copy(update={"classes": 5})
    report = audit_file(write_artifact(tmp_path / "lie.safetensors", lie, state))
    assert report.outcome == "suspicious"
    assert "4 outputs" in report.architecture
    bomb = spec.model_copy(update={"classes": 10**9})
    report = audit_file(write_artifact(tmp_path / "bomb.safetensors", bomb, state))
    assert "4 outputs" in report.architecture


def test_findings_have_the_names_of_the_file() -> None:
    spec = ModelSpec(name="mlp", channels=1, size=28, classes=10)
    state = state_of(build(spec, seed=0))
    theirs = dict(zip(_FourLayers().state_dict(), state.values(), strict=True))
    theirs["second.weight"] = theirs["second.weight"].clone()
    theirs["second.weight"].view(-1).numpy().view("uint32")[:] |= 32
    report = audit(Checkpoint(theirs))
    assert {f.tensor for f in report.findings if f.level == "carries"} == {"second.weight"}
    assert [row.name for row in report.noted()] == ["second.weight"]


def test_a_type_that_the_network_does_not_explain_is_a_finding() -> None:
    spec = ModelSpec(name="cnn", channels=3, size=12, classes=4)
    state = state_of(build(spec, seed=1))
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    found = [f for f in audit(Checkpoint(half), spec).findings if f.check == "dtypes"]
    assert [(f.tensor, f.level) for f in found] == [(None, "note")]
    mixed = {**state, "3.weight": state["3.weight"].double()}
    found = [f for f in audit(Checkpoint(mixed), spec).findings if f.check == "dtypes"]
    assert [(f.tensor, f.level) for f in found] == [("3.weight", "suspicious")]


def test_an_optimizers_state_is_not_clean(tmp_path: Any) -> None:
    spec = ModelSpec(name="cnn", channels=3, size=12, classes=4)
    model = build(spec, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(torch.zeros(2, 3, 12, 12)).sum().backward()
    optimizer.step()
    path = tmp_path / "with.pth"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    report = audit_file(path, Statement(size=12))
    assert report.outcome == "unchecked", report.findings
    assert "beside the weights" in report.unchecked


def test_pruning_masks_belong_to_their_weights() -> None:
    from torch.nn.utils import prune

    spec = ModelSpec(name="cnn", channels=3, size=12, classes=4)
    model = build(spec, seed=1)
    prune.l1_unstructured(model.get_submodule("3"), "weight", amount=0.5)
    report = audit(Checkpoint(state_of(model)), spec)
    assert report.outcome == "clean", report.findings
    (found,) = [f for f in report.findings if f.tensor == "3.weight_mask"]
    assert found.evidence["weights"] == round(0.5 * model.get_submodule("3").weight.numel())
    assert "3.weight_orig" in [row.name for row in report.tensors]
    lone = state_of(build(spec, seed=1)) | {"3.weight_mask": torch.ones(3)}
    assert audit(Checkpoint(lone), spec).outcome == "carries"


def test_a_single_count_is_no_payload() -> None:
    spec = ModelSpec(name="cnn", channels=3, size=12, classes=4)
    averaged = state_of(build(spec, seed=1)) | {"n_averaged": torch.tensor(12)}
    report = audit(Checkpoint(averaged), spec)
    assert report.outcome == "clean", report.findings
    odd = averaged | {"n_averaged": torch.tensor(-(2**62) + 12345)}
    assert audit(Checkpoint(odd), spec).outcome == "carries"
