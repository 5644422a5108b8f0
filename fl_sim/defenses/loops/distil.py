"""Distillation on the held-out set: a student learns what the model that was trained answers.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Nothing
of the model's weights gets into the student's but through the answers to the images asked.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import kl_div, log_softmax, logsigmoid

from fl_sim.data.base import Task
from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import log_utility, relative_change
from fl_sim.errors import FlSimError
from fl_sim.models import fresh, layers
from fl_sim.progress import piece
from fl_sim.training import (
    RecipeSettings,
    Schedule,
    batch_indices,
    make_optimizer,
    normalized,
    rate_factor,
)
from fl_sim.views import Orientations, label_shares, shares_loss, view

_REPORTS = 10

Teacher = Callable[[torch.Tensor], torch.Tensor]
"""Answers views, normalised ``[n, channels, side, side]``, with logits ``[n, outputs, ...]``."""


class StudentSettings(RecipeSettings):
    """Keys of every student, beside those of every recipe.

    Args:
        steps: optimizer steps.
        learning_rate: at its highest, after a short warm-up; it falls to zero along half a cosine.
        schedule: see :class:`fl_sim.training.RecipeSettings`.
        views: what the networks are asked about: the held-out images (``"none"``), also flipped
            left to right (``"flip"``), or in all eight orientations of a square (``"square"``).
            Teacher and student see the same view, so a view need not keep its label.
        mixup: images are mixed pairwise with shares up to this one; 0 for none.
        start: the student's weights before the first step: ``"fresh"`` random ones, or those of
            the ``"reference"``, a model that the owner knows to be clean (in a federation the
            release before, if that was cleaned). Without a reference they are fresh.
    """

    steps: int = Field(600, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Schedule = "cosine"
    views: Orientations = "square"
    mixup: float = Field(1.0, ge=0, le=1)
    start: Literal["fresh", "reference"] = "reference"


class DistillingSettings(StudentSettings):
    """Keys of every distillation, beside those of every student.

    Args:
        temperature: that both networks' answers are softened with.
        labels: weight of the held-out labels in what is learned, from 0 (the teacher's answers
            only) to 1 (labels only, without a teacher: the control); mixed as the images are. A
            teacher that is still learning, as a federation's is, knows less than the labels do.
    """

    temperature: float = Field(2.0, gt=0)
    labels: float = Field(0.5, ge=0, le=1)


def distil(
    release: Release,
    settings: DistillingSettings,
    student: nn.Module | None = None,
    targets: torch.Tensor | None = None,
    teacher: Teacher | None = None,
) -> DefenseReport:
    """Replace a network by a student that learned its answers on the held-out set, in place.

    Further entries of the model file do not leave. With labels only and a start of the owner's the
    model is never asked: the cap is 0 bits then, else the size of what leaves.

    Args:
        release: the network and the held-out images; their labels are used where
            ``settings.labels`` says so.
        settings: of the distillation.
        student: a network of the same architecture to start from, changed in place; by default
            what ``settings.start`` says.
        targets: what is learned of each held-out image in place of its label, shares ``[n,
            outputs, ...]`` as :func:`fl_sim.views.label_shares` returns them.
        teacher: who is asked; by default the network as it came.

    Raises:
        FlSimError: if there are fewer than two held-out images, or the network's answers to them
            are not finite.
    """
    if len(release.held_out) < 2:
        raise FlSimError("Distillation needs two held-out images or more; raise [data] images.")
    began = time.perf_counter()
    before = {name: p.detach().clone() for name, p in release.model.named_parameters()}
    teacher = teacher or copy.deepcopy(release.model).eval()
    report = DefenseReport(images=len(release.held_out))
    if student is None and targets is None and settings.labels == 1:
        report.cap_bits = 0.0
    student = student or _student(release, settings)
    spent = _learn(student, teacher, release, settings, targets, report)
    release.model.load_state_dict(student.state_dict())
    release.model.eval()
    release.entries.clear()
    by_tensor = layers(release.model, release.spec.input_shape, "tensor")
    report.relative_change = relative_change(release.model, before, by_tensor)
    report.seconds = time.perf_counter() - began - spent
    return report


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, task: Task, temperature: float
) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of softened answers, times the squared temperature.

    Args:
        student: logits ``[n, outputs, ...]``; of a segmentation those of each pixel.
        teacher: logits of the same shape.
        task: with several labels an image, each label is a distribution of its own.
        temperature: that logits are divided by.
    """
    given, wanted = student / temperature, teacher / temperature
    if task.multi_label:
        given = torch.stack([logsigmoid(given), logsigmoid(-given)], dim=1)
        wanted = torch.stack([logsigmoid(wanted), logsigmoid(-wanted)], dim=1)
    else:
        given, wanted = log_softmax(given, dim=1), log_softmax(wanted, dim=1)
    answers = given.numel() // given.shape[1]
    total = kl_div(given, wanted, reduction="sum", log_target=True)
    return total / answers * temperature**2


def _student(release: Release, settings: DistillingSettings) -> nn.Module:
    seed = int(release.stream.numpy("student").integers(2**31))
    student = fresh(release.spec, seed).to(next(release.model.parameters()).device)
    if settings.start == "reference" and release.reference is not None:
        student.load_state_dict(release.reference, strict=False)
    return student


def _learn(
    student: nn.Module,
    teacher: Teacher,
    release: Release,
    settings: DistillingSettings,
    targets: torch.Tensor | None,
    report: DefenseReport,
) -> float:
    """Train the student; return the seconds that logging utility took."""
    optimizer = make_optimizer(student.parameters(), settings, settings.learning_rate)
    generator = release.stream.numpy("distillation batches")
    batches = batch_indices(len(release.held_out), settings.batch_size, generator)
    every = math.ceil(settings.steps / _REPORTS)
    losses: list[float] = []
    spent = 0.0
    with (
        release.stream.seeded("distillation dropout"),
        piece(release.progress, "defence", settings.steps),
    ):
        for step in range(settings.steps):
            rate = settings.learning_rate * rate_factor(settings.schedule, step, settings.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            indices = next(batches)
            pixels, labels = release.held_out.batch(indices)
            shares = label_shares(labels, release.task) if targets is None else targets[indices]
            asked, truth = view(pixels, shares, settings.views, settings.mixup, generator)
            student.train()
            losses.append(_step(student, teacher, asked, truth, release.task, optimizer, settings))
            release.progress.step(f"loss {losses[-1]:.3f}")
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                report.epochs.append({"step": step + 1.0, "loss": float(np.mean(losses))})
                losses.clear()
                spent += log_utility(student, release, report)
    return spent


def _step(
    student: nn.Module,
    teacher: Teacher,
    asked: torch.Tensor,
    truth: torch.Tensor,
    task: Task,
    optimizer: torch.optim.Optimizer,
    settings: DistillingSettings,
) -> float:
    device = next(student.parameters()).device
    asked = normalized(asked.to(device))
    optimizer.zero_grad(set_to_none=True)
    given = student(asked)
    parts = []
    if settings.labels < 1:
        with torch.no_grad():
            answers = teacher(asked)
        soft = divergence(given, answers, task, settings.temperature)
        parts.append((1 - settings.labels) * soft)
    if settings.labels:
        parts.append(settings.labels * shares_loss(given, truth.to(device), task))
    loss = torch.stack(parts).sum()
    if not bool(loss.isfinite()):
        raise FlSimError(
            "The distillation's loss is not finite: the model's own answers are not, or the "
            "learning_rate of [defense] is too high."
        )
    loss.backward()
    optimizer.step()
    return float(loss.detach())
