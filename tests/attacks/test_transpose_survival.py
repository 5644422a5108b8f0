"""Memory trained to survive: disturbed gradients, restored losses, chosen tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.attacks.base import Inside, Plan
from fl_sim.attacks.transpose import Transpose, TransposeSettings, scaled, transposed_pass
from fl_sim.attacks.transpose.survival import Disturbance, SurvivalSettings
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.image_losses import restored_like
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, TrainingSettings

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
STREAM = Stream(0)


def _data(count: int = 48) -> Split:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, 1))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    return Split(images, generator.integers(0, 3, count))


def _run(epochs: float = 1) -> LocalTraining:
    training = TrainingSettings(epochs=epochs, batch_size=16)
    return LocalTraining(build(SPEC), SPEC, _data(), TASK, training, STREAM)


def _attack(settings: TransposeSettings, epochs: float = 1) -> tuple[nn.Module, Plan]:
    attack, run = Transpose(settings), _run(epochs)
    plan = attack.plan(Inside(_data(), TASK, SPEC, STREAM))
    attack.train(run, plan)
    return run.model.eval(), plan


def test_a_disturbance_gives_everything_back_but_the_gradients() -> None:
    run = _run()
    disturbance = Disturbance(SurvivalSettings(share=1.0, noise=0.1, steps=2), run)
    before = {n: v.clone() for n, v in run.model.state_dict().items()}
    parameter = next(run.model.parameters())
    with disturbance.applied():
        after = run.model.state_dict()
        assert any(not torch.equal(after[name], before[name]) for name in before)
        parameter.square().sum().backward()
    assert all(torch.equal(v, before[n]) for n, v in run.model.state_dict().items())
    # The gradient is that of the disturbed weights, 2 w, not of the ones given back.
    assert parameter.grad is not None
    assert not torch.allclose(parameter.grad, 2 * parameter)


def test_simulated_steps_are_those_of_sgd_with_decaying_rates() -> None:
    run = _run()
    settings = SurvivalSettings(share=1.0, steps=1, high=0.1, low=0.001, batch_size=48)
    first, last = (list(run.model.parameters())[place] for place in (0, -2))
    images, labels = run.data.batch(np.arange(48))
    loss = TASK.loss(run.model(images * 2 - 1), labels)
    gradients = torch.autograd.grad(loss, [first, last])
    before = [p.detach().clone() for p in (first, last)]
    with Disturbance(settings, run).applied():
        moved = [p.detach() - b for p, b in zip((first, last), before, strict=True)]
    for change, gradient, rate in zip(moved, gradients, (0.1, 0.001), strict=True):
        assert torch.allclose(change, -rate * gradient, atol=2e-5)


def test_without_a_disturbance_training_is_as_before() -> None:
    one, _ = _attack(TransposeSettings(images=8))
    two, _ = _attack(TransposeSettings(images=8, survive=SurvivalSettings(), tensors=("*",)))
    left, right = one.state_dict(), two.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_memory_trained_for_noise_withstands_more_of_it() -> None:
    errors = []
    for noise in (0.0, 0.3):
        survive = SurvivalSettings(share=1.0, noise=noise)
        model, plan = _attack(TransposeSettings(images=4, memory_steps=30, survive=survive), 5)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                size = 0.3 * parameter.std(correction=0)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
            images = transposed_pass(model, SPEC)(scaled(plan.key.tensors["codes"]))
        errors.append(float((images - plan.targets).abs().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_the_memory_may_change_chosen_tensors_only() -> None:
    with pytest.raises(FlSimError, match="match no parameter"):
        _attack(TransposeSettings(images=4, tensors=("nothing*",)))
    _attack(TransposeSettings(images=4, tensors=("*.weight", "*.bias")))


def test_a_restored_loss_does_not_see_a_common_shift_or_contrast() -> None:
    targets = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shifted = 0.3 * targets + torch.linspace(-2, 2, 8)
    assert torch.allclose(restored_like(shifted, targets), targets, atol=5e-3)
    assert torch.equal(restored_like(shifted[:1], targets[:1]), shifted[:1])
