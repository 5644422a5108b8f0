"""Consistent distillation: what the student learns, and that nothing else of the model leaves."""

import copy

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from fl_sim.carriers.dead import dead_weights
from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.defenses.loops.distil import DistillingSettings, _step, distil, divergence
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import normalized, predict, rate_factor
from fl_sim.views import shares_loss

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
STREAM = Stream(0)


def _held_out(count: int = 48, size: int = 16) -> Split:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, count)
    noise = generator.integers(0, 60, (count, size, size, 1))
    return Split((noise + 60 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels)


def _release(model, spec=SPEC, task=TASK, held_out=None, **changes) -> Release:
    return Release(model, spec, held_out or _held_out(size=spec.size), task, STREAM, **changes)


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_divergence_is_that_of_softened_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator)
    wanted = kl_divergence(Categorical(logits=teacher / 2), Categorical(logits=student / 2)).mean()
    torch.testing.assert_close(divergence(student, teacher, TASK, 2.0), 4 * wanted)
    several = Task(MULTI_LABEL, ("a", "b", "c"))
    wanted = kl_divergence(Bernoulli(logits=teacher / 2), Bernoulli(logits=student / 2)).mean()
    torch.testing.assert_close(divergence(student, teacher, several, 2.0), 4 * wanted)


def test_divergence_of_labels_is_their_cross_entropy_less_the_teachers() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    target, cross = teacher.sigmoid(), binary_cross_entropy_with_logits
    wanted = cross(student, target) - cross(teacher, target)
    several = Task(MULTI_LABEL, ("a", "b", "c", "d"))
    torch.testing.assert_close(divergence(student, teacher, several, 1.0), wanted)
    assert divergence(teacher, teacher, TASK, 2.0).abs() < 1e-6


def test_divergence_of_a_segmentation_is_a_mean_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 4, generator=generator)
    task = Task(SEGMENTATION, ("background", "a", "b"))
    given, wanted = (x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (student, teacher))
    torch.testing.assert_close(
        divergence(student, teacher, task, 1.0), divergence(given, wanted, TASK, 1.0)
    )


def test_the_student_learns_the_teachers_answers() -> None:
    # A teacher that is wrong on purpose: the student follows it, not the labels.
    held_out = _held_out()
    teacher = build(SPEC, 1)
    wrong = Split(held_out.images, (held_out.labels + 1) % 3)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
    pixels, labels = wrong.tensors()
    teacher.train()
    for _ in range(40):
        optimizer.zero_grad()
        TASK.loss(teacher(pixels * 2 - 1), labels).backward()
        optimizer.step()
    answers = predict(teacher, held_out, TASK).argmax(1)
    assert (answers == labels).float().mean() > 0.95
    report = distil(
        _release(teacher), DistillingSettings(steps=150, batch_size=16, mixup=0.5, labels=0.0)
    )
    agreement = (predict(teacher, held_out, TASK).argmax(1) == answers).float().mean()
    assert agreement > 0.9
    assert report.epochs[-1]["loss"] < report.epochs[0]["loss"] / 2
    assert report.images == len(held_out)


def test_each_step_has_the_schedules_rate_and_both_parts_of_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates, step = [], _step

    def watched(student, teacher, asked, truth, task, optimizer, settings):
        assert student.training and not teacher.training
        rates.append({group["lr"] for group in optimizer.param_groups})
        with torch.no_grad():
            given = copy.deepcopy(student)(
                normalized(asked)
            )  # its statistics are not the student's
            soft = divergence(given, teacher(normalized(asked)), task, 3.0)
            expected = 0.75 * soft + 0.25 * shares_loss(given, truth, task)
        loss = step(student, teacher, asked, truth, task, optimizer, settings)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        return loss

    monkeypatch.setattr("fl_sim.defenses.loops.distil._step", watched)
    model = build(SPEC, 1).train()
    settings = DistillingSettings(steps=5, batch_size=8, labels=0.25, temperature=3.0)
    distil(_release(model), settings)
    assert rates == [{settings.learning_rate * rate_factor("cosine", n, 5)} for n in range(5)]
    counted = {int(v) for n, v in state_of(model).items() if n.endswith("num_batches_tracked")}
    assert counted == {5} and not model.training


def test_nothing_that_the_answers_do_not_tell_reaches_the_student() -> None:
    # What is written into dead weights and further entries leaves no trace, not in a single bit.
    spec = ModelSpec(name="resnet18", channels=1, size=16, classes=3)
    settings = DistillingSettings(steps=2, batch_size=8)
    students = []
    for payload in (False, True):
        model = build(spec, 1)
        entries = {}
        if payload:
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, mask in dead_weights(spec).items():
                    parameters[name][mask] = 0.123
            entries = {"payload": torch.ones(3)}
        distil(_release(model, spec, held_out=_held_out(8), entries=entries), settings)
        assert not entries
        students.append(state_of(model))
    assert all(torch.equal(students[0][name], value) for name, value in students[1].items())


def test_the_student_starts_from_the_reference_where_there_is_one() -> None:
    reference = state_of(build(SPEC, 7))
    for start, close in (("reference", True), ("fresh", False)):
        model = build(SPEC, 1)
        settings = DistillingSettings(steps=1, learning_rate=1e-6, start=start)
        distil(_release(model, reference=reference), settings)
        name, weight = next(iter(model.named_parameters()))
        assert torch.allclose(weight, reference[name], atol=1e-4) == close


@pytest.mark.parametrize("kind", ["multi-class", MULTI_LABEL, SEGMENTATION])
def test_labels_teach_what_the_teacher_does_not_know(kind: str) -> None:
    held_out = _held_out()
    spec = SPEC
    names: tuple[str, ...] = ("a", "b", "c")
    if kind == MULTI_LABEL:
        held_out = Split(held_out.images, np.eye(3, dtype=np.int64)[held_out.labels])
    if kind == SEGMENTATION:
        masks = (held_out.images[..., 0] > 90).astype(np.uint8)
        held_out, names = Split(held_out.images, masks), ("background", "bright")
        spec = ModelSpec(name="unet", channels=1, size=16, classes=2, task="segmentation")
    task = Task(kind, names)
    losses = []
    for weight in (0.0, 1.0):
        model = build(spec, 1)
        settings = DistillingSettings(
            steps=60, batch_size=16, labels=weight, mixup=0.0, learning_rate=1e-2
        )
        distil(_release(model, spec, task, held_out), settings)
        pixels, labels = held_out.tensors()
        with torch.no_grad():
            losses.append(float(task.loss(model(pixels * 2 - 1), labels)))
    assert losses[1] < 0.9 * losses[0]


def test_the_same_release_gives_the_same_student() -> None:
    states = []
    for _ in range(2):
        model = build(SPEC, 1)
        DEFENSES.get("consistent_distillation")(DistillingSettings(steps=3)).apply(_release(model))
        states.append(state_of(model))
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_problems_are_one_sentence() -> None:
    with pytest.raises(FlSimError, match="two held-out images"):
        distil(_release(build(SPEC), held_out=_held_out(1)), DistillingSettings())
    model = build(SPEC)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FlSimError, match="not finite"):
        distil(_release(model), DistillingSettings(steps=1))
