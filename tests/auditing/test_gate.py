"""The export gate: what it refuses, what it lets pass, and that nothing unmoved leaves."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from fl_sim.artifact import Artifact
from fl_sim.auditing.gate import Declaration, GateSettings, pass_gate
from fl_sim.auditing.gate_report import GateReport
from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.dead import dead_weights
from fl_sim.data import load_dataset
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_model, state_of
from fl_sim.models.base import MODELS, ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from tests.network_kit import DEEP

SPEC = ModelSpec(name="cnn", channels=3, size=12, classes=4)
State = dict[str, torch.Tensor]
Data = tuple[Split, Split, Task]


def _settings(**values: Any) -> GateSettings:
    return parse(GateSettings, {"epochs": 3, **values}, "[gate]")


def _gate(
    state: State, data: Data, settings: GateSettings | None = None, **more: Any
) -> tuple[GateReport, State | None]:
    _, held_out, task = data
    return pass_gate(
        Artifact(SPEC, state), held_out, task, settings or _settings(), Stream(1), **more
    )


def test_a_clean_model_passes_and_every_weight_has_changed(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    report, cleaned = _gate(state, phantoms)
    assert report.approved, report.all_reasons()
    assert cleaned is not None and cleaned.keys() == state.keys()
    for name, tensor in cleaned.items():
        if tensor.dim() >= 2:
            assert (tensor != state[name]).double().mean() > 0.999, name
    assert report.loss_after < 2 * report.loss_before
    assert json.loads(json.dumps(report.as_dict()))["approved"] is True


def test_further_entries_are_refused(trained: tuple[State, State], phantoms: Data) -> None:
    _, state = trained
    report, cleaned = _gate(state | {"payload": torch.zeros(9, dtype=torch.uint8)}, phantoms)
    assert cleaned is None and not report.approved
    assert any("payload" in reason for reason in report.all_reasons())


class _TwoHeads(nn.Module):
    """A network with a second head that its forward computes and its output ignores."""

    def __init__(self, inner: nn.Module, in_graph: bool) -> None:
        super().__init__()
        self.inner = inner
        self.second = nn.Linear(4, 64)
        self.in_graph = in_graph

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.inner(images)
        if self.in_graph:
            return scores + 0.0 * self.second(scores).sum(dim=1, keepdim=True)
        return scores


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_second_head_is_refused_by_graph_or_by_gradient(
    trained: tuple[State, State], phantoms: Data, in_graph: bool
) -> None:
    _, state = trained
    inner = build(SPEC)
    inner.load_state_dict(state)
    network = _TwoHeads(inner, in_graph)
    report, cleaned = _gate(state_of(network), phantoms, network=network)
    assert cleaned is None
    (row,) = [row for row in report.tensors if row.name == "second.weight"]
    wanted = "no gradient" if in_graph else "does not depend"
    assert any(wanted in reason for reason in row.reasons)
    assert row.relative_change == 0


def test_weights_that_the_makers_code_keeps_frozen_are_refused(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    network = build(SPEC)
    network.load_state_dict(state)
    network.get_parameter("0.weight").requires_grad_(False)
    hidden = network.get_parameter("3.weight")
    hidden.register_hook(torch.zeros_like)  # takes gradients, and drops them
    report, cleaned = _gate(state, phantoms, network=network)
    refused = {row.name: " ".join(row.reasons) for row in report.tensors if row.reasons}
    assert cleaned is None and set(refused) == {"0.weight", "3.weight"}
    assert "refuses it gradients" in refused["0.weight"]
    assert "100%" in refused["3.weight"]


def test_storage_in_buffers_is_refused_and_in_any_case_overwritten(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    stored = {**state, "1.running_mean": torch.linspace(-90, 90, 32)}
    report, cleaned = _gate(stored, phantoms)
    assert cleaned is None
    assert [row.name for row in report.tensors if row.reasons] == ["1.running_mean"]
    low = state["1.running_mean"].clone()
    low.view(torch.int32)[:] ^= 0x5A5A  # bits that no threshold sees
    report, cleaned = _gate({**state, "1.running_mean": low}, phantoms)
    assert cleaned is not None
    _, same = _gate(state, phantoms)
    assert same is not None
    difference = (cleaned["1.running_mean"] - same["1.running_mean"]).abs().max()
    assert difference < 1e-2 * same["1.running_mean"].abs().max()


def test_dead_weights_are_overwritten_and_change_no_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MODELS.entries()  # what the project registers stays
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))  # forgets it again
    spec = ModelSpec(name=state_model(DEEP), channels=3, size=8, classes=4)
    data = load_dataset("phantoms", {"size": spec.size})
    held_out, task = data.validation, data.task
    state = state_of(build(spec, seed=1))
    dead = dead_weights(spec)
    common = {"epochs": 1, "max_unmoved": 0.95, "rounds": 1, "min_change": 1e-6}
    common["max_statistics"] = 10  # an untrained network's buffers are those of no images
    settings = _settings(**common)
    few = held_out.subset(torch.arange(32).numpy())
    report, cleaned = pass_gate(Artifact(spec, state), few, task, settings, Stream(0))
    assert cleaned is not None, report.all_reasons()
    for name, mask in dead.items():
        # Of thirty thousand fresh values one or two may happen to be the old one.
        same = (cleaned[name][mask] == state[name][mask]).double().mean()
        assert same < 1e-4
    kept = {**cleaned, **{n: torch.where(m, state[n], cleaned[n]) for n, m in dead.items()}}
    pixels = torch.rand(4, *spec.input_shape)
    one, other = Artifact(spec, cleaned).model(), Artifact(spec, kept).model()
    assert torch.allclose(one(pixels), other(pixels), atol=1e-5)
    refused, _ = pass_gate(
        Artifact(spec, state),
        few,
        task,
        _settings(**common, overwrite_dead=False),
        Stream(0),
    )
    assert any("dead" in reason for reason in refused.all_reasons())


def test_a_payload_in_low_bits_does_not_pass(trained: tuple[State, State], phantoms: Data) -> None:
    _, state = trained
    kind = CARRIERS.get("lsb")
    carrier = kind(kind.Settings(), 7, SPEC)
    payload = torch.randint(0, 256, (20_000,), generator=torch.Generator().manual_seed(0))
    sent = payload.to(torch.uint8).numpy()
    report, cleaned = _gate(carrier.write(state, sent), phantoms)
    assert report.approved and cleaned is not None
    assert (carrier.read(cleaned, len(sent)) == sent).mean() < 0.05


def test_the_declared_loss_is_compared_with_the_tasks(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    task = phantoms[2]

    def with_a_second_aim(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return task.loss(logits, labels) + logits.square().mean()

    honest, _ = _gate(state, phantoms, declared=Declaration(task.kind, task.loss))
    assert honest.approved
    report, cleaned = _gate(state, phantoms, declared=Declaration(task.kind, with_a_second_aim))
    assert cleaned is None and "another aim" in report.reasons[0]
    report, cleaned = _gate(state, phantoms, declared=Declaration("binary-class"))
    assert cleaned is None and "declared task" in report.reasons[0]
    with pytest.raises(FlSimError, match="Did you mean 'multi-class'"):
        _gate(state, phantoms, declared=Declaration("multiclass"))


def test_outputs_beside_the_tasks_are_refused(phantoms: Data) -> None:
    spec = ModelSpec(name="cnn", channels=3, size=12, classes=9)
    _, held_out, task = phantoms
    report, cleaned = pass_gate(Artifact(spec, state_of(build(spec))), held_out, task, _settings())
    assert cleaned is None
    assert "(9,)" in report.reasons[0]


def test_a_registered_defence_can_do_the_fine_tuning(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    lwlrd = {"name": "lwlrd", "epochs": 2}
    report, cleaned = _gate(state, phantoms, _settings(defense=lwlrd, min_change=1e-5))
    assert report.defense == "lwlrd" and cleaned is not None, report.all_reasons()
    nothing = {"name": "gaussian_noise", "sigma": 0.0}
    report, cleaned = _gate(state, phantoms, _settings(defense=nothing, rounds=2))
    assert cleaned is None and report.rounds == 2
    assert all(row.reasons for row in report.tensors if row.kind == "parameter")


def test_values_that_were_kept_frozen_are_refused_by_the_audit(
    trained: tuple[State, State], phantoms: Data
) -> None:
    _, state = trained
    flat = state["3.weight"].sign() * state["3.weight"].std() * 0.8  # a latent's few levels
    stored = {**state, "3.weight": flat}
    report, cleaned = _gate(stored, phantoms)
    assert cleaned is None
    assert [row.name for row in report.tensors if row.reasons] == ["3.weight"]
    assert any("audit" in reason for reason in report.all_reasons())
    # A checkpoint does not say what its makers' code kept frozen: fine-tuned alone, it passes.
    _, moved = _gate(stored, phantoms, _settings(audit=False))
    assert moved is not None and (moved["3.weight"] != flat).all()


def test_parameters_that_lag_behind_are_fine_tuned_faster(
    trained: tuple[State, State], phantoms: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = trained
    slow = _settings(epochs=1, learning_rate=1e-4, min_change=3e-4, max_unmoved=0.99, rounds=5)
    report, cleaned = _gate(state, phantoms, slow)
    assert cleaned is not None, report.all_reasons()
    assert report.rounds > 1
    monkeypatch.setattr("fl_sim.auditing.gate._FASTER", 1.0)
    report, cleaned = _gate(state, phantoms, slow)
    assert cleaned is None
    assert any("less than" in reason for reason in report.all_reasons())
