"""LWLRD: the published schedule, what moves, and what the report says."""

import math

import numpy as np
import pytest
import torch

from fl_sim.data.base import MULTI_LABEL, Split, Task
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.defenses.lwlrd import Lwlrd, LwlrdSettings, decayed_rates
from fl_sim.errors import FlSimError
from fl_sim.models import build_model, layers
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse

TASK = Task("multi-class", ("a", "b", "c"))
STREAM = Stream(0)
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)


def _held_out(count: int = 40, multi_label: bool = False) -> Split:
    generator = np.random.default_rng(0)
    labels = (
        generator.integers(0, 2, (count, 3)) if multi_label else generator.integers(0, 3, count)
    )
    brightness = labels.sum(axis=1) if multi_label else labels
    noise = generator.integers(0, 60, (count, 16, 16, 1))
    return Split((noise + 60 * brightness.reshape(-1, 1, 1, 1)).astype(np.uint8), labels)


def test_rates_of_five_layers_by_hand() -> None:
    # (1e-4 / 1e-2) ** (k / 4) = 10 ** (-k / 2) for k = 0 ... 4
    by_hand = [1e-2, 1e-2 / math.sqrt(10), 1e-3, 1e-3 / math.sqrt(10), 1e-4]
    assert decayed_rates(1e-2, 1e-4, 5) == pytest.approx(by_hand)
    assert decayed_rates(1e-2, 1e-4, 1) == [1e-2]


@pytest.mark.parametrize("grouping", ["tensor", "module", "block", "depth"])
def test_each_layer_gets_its_rate_in_forward_order(grouping: str) -> None:
    model = build_model("resnet18", 1, 16, 3)
    spec = ModelSpec(name="resnet18", channels=1, size=16, classes=3)
    settings = LwlrdSettings(epochs=1, layers=grouping)
    report = Lwlrd(settings).apply(Release(model, spec, _held_out(8), TASK, STREAM))
    ordered = [layer.name for layer in layers(model, (1, 16, 16), settings.layers)]
    assert list(report.learning_rates) == ordered
    rates = list(report.learning_rates.values())
    assert rates == pytest.approx(decayed_rates(1e-2, 1e-4, len(ordered)))


def test_one_step_of_sgd_moves_each_layer_by_its_rate_times_its_gradient() -> None:
    held_out = _held_out(16)
    model = build_model("cnn", 1, 16, 3).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pixels, labels = held_out.tensors()
    TASK.loss(model(pixels * 2 - 1), labels).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    fresh = build_model("cnn", 1, 16, 3)
    settings = LwlrdSettings(epochs=1, batch_size=16, momentum=0.0)
    report = Lwlrd(settings).apply(Release(fresh, SPEC, held_out, TASK, STREAM))
    for layer in layers(fresh, (1, 16, 16), "block"):
        for name in layer.parameters:
            moved = before[name] - dict(fresh.named_parameters())[name].detach()
            expected = report.learning_rates[layer.name] * gradients[name]
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_report_has_every_epoch_and_layer(multi_label: bool, optimizer: str) -> None:
    task = Task(MULTI_LABEL if multi_label else "multi-class", ("a", "b", "c"))
    model = build_model("cnn", 1, 16, 3)
    asked: list[bool] = []

    def evaluate(network: torch.nn.Module) -> float:
        asked.append(network is model)
        network.eval()
        return 0.5

    settings = LwlrdSettings(epochs=3, batch_size=8, optimizer=optimizer, flip=True)
    report = Lwlrd(settings).apply(
        Release(model, SPEC, _held_out(multi_label=multi_label), task, STREAM, evaluate)
    )
    assert asked == [True] * 3
    assert [epoch["utility"] for epoch in report.epochs] == [0.5] * 3
    assert report.epochs[-1]["loss"] < report.epochs[0]["loss"]
    assert len(report.relative_change) == 5
    assert all(change > 0 for change in report.relative_change.values())
    assert report.images == 40 and report.seconds > 0


def test_the_relative_change_is_that_of_the_weights() -> None:
    model = build_model("cnn", 1, 16, 3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = Lwlrd(LwlrdSettings(epochs=1)).apply(Release(model, SPEC, _held_out(), TASK, STREAM))
    after = dict(model.named_parameters())
    first = layers(model, (1, 16, 16), "block")[0]
    moved = torch.cat([(after[n] - before[n]).flatten() for n in first.parameters]).norm()
    size = torch.cat([before[n].flatten() for n in first.parameters]).norm()
    assert report.relative_change[first.name] == pytest.approx((moved / size).item(), rel=1e-5)


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    def cleaned(seed: int) -> torch.Tensor:
        model = build_model("cnn", 1, 16, 3)
        Lwlrd(LwlrdSettings(epochs=1, batch_size=8)).apply(
            Release(model, SPEC, _held_out(), TASK, Stream(seed))
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(cleaned(0), cleaned(0))
    assert not torch.equal(cleaned(0), cleaned(1))


def test_bad_settings_are_one_sentence() -> None:
    with pytest.raises(FlSimError, match="Did you mean 'epochs'"):
        parse(LwlrdSettings, {"epoch": 3}, "[defense]")
    with pytest.raises(FlSimError, match="must not exceed high"):
        parse(LwlrdSettings, {"high": 1e-4, "low": 1e-2}, "[defense]")
    with pytest.raises(FlSimError, match=r"'layers' is 'stage'"):
        parse(LwlrdSettings, {"layers": "stage"}, "[defense]")
    with pytest.raises(FlSimError, match="no held-out images"):
        Lwlrd(LwlrdSettings()).apply(
            Release(build_model("cnn", 1, 16, 3), SPEC, _held_out(0), TASK, STREAM)
        )
    assert parse(LwlrdSettings, {"high": 1e-3, "low": 1e-3}, "[defense]").low == 1e-3


def test_it_is_registered() -> None:
    assert DEFENSES.get("lwlrd") is Lwlrd


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_running_statistics_move_only_where_batches_are_normalised(batch_norm: str) -> None:
    model = build_model("cnn", 1, 16, 3)
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    settings = parse(LwlrdSettings, {"epochs": 1, "batch_norm": batch_norm}, "[defense]")
    Lwlrd(settings).apply(Release(model, SPEC, _held_out(), TASK, STREAM))
    after = dict(model.named_buffers())
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    assert moved == (batch_norm == "batch")


def test_the_controls_have_the_same_rates_turned_around_or_their_geometric_mean() -> None:
    reports = {}
    for name in ("lwlrd", "lwlrd_reversed", "lwlrd_uniform"):
        kind = DEFENSES.get(name)
        settings = parse(kind.Settings, {"epochs": 1, "high": 4e-3, "low": 1e-3}, "[defense]")
        release = Release(build_model("cnn", 1, 16, 3), SPEC, _held_out(), TASK, STREAM)
        reports[name] = kind(settings).apply(release).learning_rates
    rates = list(reports["lwlrd"].values())
    assert list(reports["lwlrd_reversed"].values()) == rates[::-1]
    assert list(reports["lwlrd_uniform"].values()) == pytest.approx([2e-3] * 5)
    assert math.prod(rates) == pytest.approx(math.prod(reports["lwlrd_uniform"].values()))
