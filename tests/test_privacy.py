"""Differentially private training: clipping, noise, sampling and what it is accounted for."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_sim.data.base import MULTI_LABEL, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.privacy import (
    DpSettings,
    PrivateGradients,
    check_private,
    noise_for,
    poisson_batches,
    spent_epsilon,
)
from fl_sim.randomness import Stream, numpy_generator
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, StepHooks, TrainingSettings, Window, predict, train

TASK = Task("binary-class", ("no", "yes"))
SPEC = ModelSpec(name="cnn", channels=1, size=8, classes=2, settings={"norm": "group"})


def _data(count: int = 48) -> Split:
    labels = np.arange(count) % 2
    noise = numpy_generator(0, "noise").integers(0, 100, (count, 8, 8, 1))
    return Split((noise + 120 * labels[:, None, None, None]).astype(np.uint8), labels)


def _run(seed: int = 0, count: int = 48, **dp: object) -> LocalTraining:
    values = {"epochs": 2, "batch_size": 16, "dp": {"noise_multiplier": 1.0, **dp}}
    parsed = parse(TrainingSettings, values, "[training]")
    return LocalTraining(build(SPEC), SPEC, _data(count), TASK, parsed, Stream(seed))


def _parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_gradients_are_clipped_one_by_one_summed_and_divided_by_the_expected_batch() -> None:
    model, data = build(SPEC).eval(), _data()
    pixels, labels = data.tensors()

    def loss_of(index: int) -> torch.Tensor:
        return TASK.loss(model(pixels[index : index + 1]), labels[index : index + 1])

    settings = DpSettings(noise_multiplier=1e-9, max_grad_norm=0.1)
    private = PrivateGradients(model.parameters(), settings, 48, 16, 10, torch.Generator())
    loss = private.fill([1, 5, 6], loss_of)
    expected = torch.zeros_like(_parameters(model))
    losses, norms = [], []
    for index in (1, 5, 6):
        value = loss_of(index)
        gradients = torch.autograd.grad(value, list(model.parameters()))
        own = torch.cat([g.flatten() for g in gradients])
        norms.append(own.norm().item())
        expected += own * min(1.0, 0.1 / own.norm().item())
        losses.append(value.item())
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, expected / 16, rtol=1e-4, atol=1e-7)
    assert loss == pytest.approx(np.mean(losses)) and max(norms) > 0.1


def test_noise_has_the_deviation_of_the_settings_even_without_images() -> None:
    model = build(SPEC)
    settings = DpSettings(noise_multiplier=2.0, max_grad_norm=0.5)
    generator = torch.Generator().manual_seed(0)
    private = PrivateGradients(model.parameters(), settings, 48, 16, 10, generator)
    assert private.fill([], lambda index: torch.zeros(())) == 0.0
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert found.std().item() == pytest.approx(2.0 * 0.5 / 16, rel=0.02)


def test_batches_are_drawn_image_by_image() -> None:
    batches = list(itertools.islice(poisson_batches(200, 0.25, numpy_generator(0, "x")), 400))
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.mean() == pytest.approx(50, abs=1)
    assert sizes.std() == pytest.approx(math.sqrt(200 * 0.25 * 0.75), rel=0.15)
    seen = np.bincount(np.concatenate(batches), minlength=200)
    assert seen.min() > 60 and seen.max() < 140


def test_epsilon_of_one_step_over_all_images_is_the_gaussian_mechanisms() -> None:
    """Rényi: ``alpha / (2 sigma^2)``, converted to epsilon at the best order."""
    sigma, delta = 4.0, 1e-5
    orders = np.linspace(1.1, 60, 5000)
    converted = (
        orders / (2 * sigma**2)
        + np.log((orders - 1) / orders)
        - (np.log(delta) + np.log(orders)) / (orders - 1)
    )
    assert spent_epsilon(sigma, 1.0, 1, delta) == pytest.approx(converted.min(), rel=0.02)
    assert spent_epsilon(sigma, 0.1, 1, delta) < spent_epsilon(sigma, 1.0, 1, delta)
    assert spent_epsilon(sigma, 0.1, 10, delta) > spent_epsilon(sigma, 0.1, 1, delta)


def test_noise_is_chosen_for_an_epsilon() -> None:
    noise = noise_for(3.0, 1e-5, 0.1, 100)
    assert 2.8 < spent_epsilon(noise, 0.1, 100, 1e-5) <= 3.0
    with pytest.raises(FlSimError, match="no noise reaches target_epsilon"):
        noise_for(1e-9, 1e-5, 1.0, 10**6)


def test_training_reports_what_it_spent() -> None:
    run = _run(target_epsilon=5.0, noise_multiplier=None)
    report = train(run)
    assert report.dp_epsilon is not None and 4.5 < report.dp_epsilon <= 5.0
    assert report.steps == 6
    by_noise = train(_run(noise_multiplier=1.5))
    assert by_noise.dp_epsilon == pytest.approx(spent_epsilon(1.5, 16 / 48, 6, 1e-5))


def test_rounds_share_the_epsilon_of_the_whole_run() -> None:
    run = _run(target_epsilon=5.0, noise_multiplier=None)
    spent = [train(replace(run, window=Window(r / 3, (r + 1) / 3))).dp_epsilon for r in range(3)]
    assert spent == sorted(spent)  # type: ignore[type-var]
    assert 4.5 < spent[2] <= 5.0 and spent[0] < 4


def test_little_noise_learns_and_the_seed_decides() -> None:
    run = _run(noise_multiplier=0.1)
    settings = run.settings.model_copy(update={"epochs": 8.0, "learning_rate": 3e-3})
    train(replace(run, settings=settings))
    found = predict(run.model, run.data, TASK).argmax(1)
    assert (found == torch.tensor(run.data.labels)).float().mean() > 0.9
    runs = []
    for seed in (0, 0, 1):
        again = _run(seed)
        train(again)
        runs.append(_parameters(again.model))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


class _Adding(StepHooks):
    """An attack that adds a huge gradient to the first parameter."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameter = next(model.parameters())

    def add_gradient(self) -> None:
        assert self._parameter.grad is not None
        self._parameter.grad += 1e6


def test_what_an_attack_adds_is_not_clipped() -> None:
    run = _run()
    settings = run.settings.model_copy(
        update={"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1e-6, "epochs": 0.1}
    )
    before = next(run.model.parameters()).detach().clone()
    report = train(replace(run, settings=settings), _Adding(run.model))
    moved = before - next(run.model.parameters()).detach()
    assert report.steps == 1
    torch.testing.assert_close(moved, torch.ones_like(moved), rtol=1e-3, atol=0)


def test_labels_and_flips_are_those_of_the_images() -> None:
    data = Split(_data().images, np.random.default_rng(0).integers(0, 2, (48, 2)))
    run = replace(_run(), data=data, task=Task(MULTI_LABEL, ("a", "b")))
    settings = run.settings.model_copy(update={"flip": True})
    assert train(replace(run, settings=settings)).images > 0


def test_batch_normalisation_is_refused_with_the_setting_that_helps() -> None:
    for name, words in (("cnn", r'set \[model\] norm = "group"'), ("vgg11", "another model")):
        spec = ModelSpec(name=name, channels=1, size=32, classes=2)
        with pytest.raises(FlSimError, match=words):
            check_private(build(spec), spec)
    for name in ("cnn", "resnet18"):
        spec = ModelSpec(name=name, channels=1, size=16, classes=2, settings={"norm": "group"})
        check_private(build(spec), spec)


def test_bad_settings_are_one_sentence() -> None:
    for dp in ({}, {"noise_multiplier": 1.0, "target_epsilon": 1.0}):
        with pytest.raises(FlSimError, match="either noise_multiplier or target_epsilon"):
            parse(TrainingSettings, {"dp": dp}, "[training]")
    with pytest.raises(FlSimError, match="Did you mean 'noise_multiplier'"):
        parse(TrainingSettings, {"dp": {"noise_multiplyer": 1.0}}, "[training]")
