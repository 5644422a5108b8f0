"""Fisher noise: how much goes where, and what is drawn anew."""

import numpy as np
import pytest
import torch

from fl_sim.carriers.dead import dead_weights
from fl_sim.data.base import Split, Task
from fl_sim.defenses.base import Release
from fl_sim.defenses.fisher_noise import FisherNoise, FisherNoiseSettings
from fl_sim.defenses.loops.distil import DistillingSettings
from fl_sim.defenses.loops.fisher import diagonal_fisher
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
RESNET = ModelSpec(name="resnet18", channels=1, size=16, classes=3)
STREAM = Stream(0)
TINY = 1e-12


def _held_out(count: int = 24) -> Split:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, count)
    noise = generator.integers(0, 60, (count, 16, 16, 1))
    return Split((noise + 60 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels)


def _noised(spec: ModelSpec, model: torch.nn.Module, **settings) -> None:
    """Apply the noise; the recovery's rate is so small that it changes nothing."""
    kept = {"epochs": 1, "learning_rate": TINY, "momentum": 0.0, "per": "batch", **settings}
    release = Release(model, spec, _held_out(), TASK, STREAM)
    FisherNoise(FisherNoiseSettings(**kept)).apply(release)


def test_the_deviation_is_the_strength_over_the_root_of_the_information() -> None:
    model = build(SPEC, 1)
    fisher = diagonal_fisher(model, _held_out(), TASK, STREAM, per="batch")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    strength = 1e-4
    _noised(SPEC, model, strength=strength, cap=1e6)
    ratios = []
    for name, weight in model.named_parameters():
        change = weight.detach() - before[name]
        if weight.ndim < 2:
            assert change.abs().max() < 1e-4
        else:
            live = fisher[name] > 0
            ratios.append((change * fisher[name].sqrt() / strength)[live])
    scaled = torch.cat(ratios)
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.03)
    assert abs(float(scaled.mean())) < 0.03


def test_no_weight_gets_more_than_the_cap() -> None:
    model = build(SPEC, 1)
    fisher = diagonal_fisher(model, _held_out(), TASK, STREAM, per="batch")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _noised(SPEC, model, strength=1e6, cap=0.5)
    for name, weight in model.named_parameters():
        live = fisher[name] > 0
        if weight.ndim >= 2 and int(live.sum()) > 500:
            change = (weight.detach() - before[name])[live]
            own = float(before[name].std(correction=0))
            assert float(change.std()) == pytest.approx(0.5 * own, rel=0.1)


def test_dead_weights_are_drawn_anew() -> None:
    model = build(RESNET, 1)
    parameters = dict(model.named_parameters())
    masks = dead_weights(RESNET)
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name][mask] = 0.123
    _noised(RESNET, model, strength=1e-6)
    for name, mask in masks.items():
        values = parameters[name].detach()[mask]
        assert not bool((values == 0.123).any())
        assert abs(float(values.mean())) < 0.01


def test_recovery_by_distillation_keeps_the_answers_better_than_none() -> None:
    model = build(SPEC, 1)
    pixels, _ = _held_out().tensors()
    model.eval()
    with torch.no_grad():
        answers = model(pixels * 2 - 1).softmax(1)

    def error(steps: int) -> float:
        network = build(SPEC, 1)
        rate = 1e-2 if steps > 1 else TINY
        recovery = DistillingSettings(steps=steps, batch_size=16, learning_rate=rate, labels=0.0)
        _noised(SPEC, network, strength=10.0, cap=1.0, distillation=recovery)
        network.eval()
        with torch.no_grad():
            return float((network(pixels * 2 - 1).softmax(1) - answers).abs().mean())

    assert error(60) < error(1) / 2


def test_no_strength_is_no_noise_and_further_entries_never_leave() -> None:
    model = build(SPEC, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    entries = {"payload": torch.ones(2)}
    release = Release(model, SPEC, _held_out(), TASK, STREAM, entries=entries)
    settings = FisherNoiseSettings(strength=0.0, epochs=1, learning_rate=TINY, per="batch")
    FisherNoise(settings).apply(release)
    assert not entries
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], atol=1e-6, rtol=0)
