"""Ordinary local training: what every hospital does, and the classification half of an attack."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from fl_sim.data.base import Split, Task, predicted_masks
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.privacy import DpSettings, PrivateGradients, check_private, poisson_batches
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.settings import MOST_EPOCHS, Settings
from fl_sim.views import Orientations, labelled_view, shares_loss

PREDICTED_PIXELS = 1 << 20
_WARMUP = 50

Schedule = Literal["constant", "cosine"]
View = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""``view(images, labels)``: the batch as the network is shown it; see :mod:`fl_sim.views`."""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``loss(logits, images, labels)``, where images are as the network takes them."""


class StepSettings(Settings):
    """How optimizer steps are taken, in training and in fine-tuning.

    Args:
        batch_size: images a step.
        optimizer: ``"adam"`` or ``"sgd"`` (with ``momentum``).
        momentum: of SGD.
        weight_decay: L2 penalty.
        flip: whether images are flipped left to right at random.
    """

    batch_size: int = Field(64, ge=2)
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    flip: bool = False


class ViewSettings(StepSettings):
    """What is shown to a network, beside the keys of every step.

    Args:
        views: images as they are (``"none"``), also flipped left to right (``"flip"``), or in all
            eight orientations of a square (``"square"``), drawn anew at each step.
        mixup: images are mixed pairwise, and their labels with them, with shares up to this one
            (Zhang et al., "mixup", ICLR 2018); 0 for none.
    """

    views: Orientations = "none"
    mixup: float = Field(0.0, ge=0, le=1)


class RecipeSettings(ViewSettings):
    """How a training or fine-tuning goes along, beside what is shown and the keys of every step.

    Args:
        schedule: the learning rate stays (``"constant"``), or rises for fifty steps and falls to
            zero along half a cosine (``"cosine"``).
    """

    schedule: Schedule = "constant"


class TrainingSettings(RecipeSettings):
    """How a network is trained on its task, beside the keys of every recipe.

    Args:
        epochs: passes over the local images (centralized), or passes in each round (federated).
        learning_rate: of the task.
        dp: differentially private training (DP-SGD), if any: its noise, or the epsilon to choose it
            for. Each image's gradient is computed by itself, which takes several times longer.
    """

    epochs: float = Field(8.0, gt=0, le=MOST_EPOCHS)
    learning_rate: float = Field(3e-4, gt=0)
    dp: DpSettings | None = None

    @model_validator(mode="after")
    def _private_as_they_are(self) -> Self:
        if self.dp is not None and (self.mixup or self.views != "none"):
            raise ValueError(
                "dp bounds what one image adds to a gradient, so it takes images as they are; "
                "leave out views and mixup"
            )
        return self

    def steps(self, images: int) -> int:
        """Number of optimizer steps for ``images`` local images, at least one."""
        return max(1, math.ceil(self.epochs * math.ceil(images / self.batch_size)))


@dataclass
class TrainReport:
    """What training did.

    Args:
        steps: taken.
        images: seen.
        seconds: wall time.
        losses: curves by name.
        dp_epsilon: of differentially private training: what the task's steps have spent from the
            start of the whole run to the end of this training.
        values: what an attack says of it by name, for the table of results.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=dict)
    dp_epsilon: float | None = None
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Proximal:
    """FedProx's penalty ``mu / 2 * ||w - w_global||^2`` over all parameters (Li et al. 2020).

    Args:
        mu: its weight.
        anchor: the broadcast parameters, in the order of ``model.parameters()``.
    """

    mu: float
    anchor: tuple[torch.Tensor, ...]

    @classmethod
    def around(cls, model: nn.Module, mu: float) -> "Proximal":
        """Anchor the penalty at the model's present parameters."""
        return cls(mu, tuple(p.detach().clone() for p in model.parameters()))

    def add_gradient(self, model: nn.Module) -> None:
        """Add the penalty's gradient, ``mu * (w - w_global)``, to the parameters' gradients."""
        with torch.no_grad():
            for parameter, anchor in zip(model.parameters(), self.anchor, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - anchor, alpha=self.mu)


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads within the block; float sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def normalized(images: torch.Tensor) -> torch.Tensor:
    """Map pixels in [0, 1] to [-1, 1], what every network here takes."""
    return images * 2.0 - 1.0


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    settings: StepSettings,
    learning_rate: float,
) -> torch.optim.Optimizer:
    """Build an optimizer, fused: six times faster for ResNet18 on a CPU.

    Args:
        parameters: of the network, or groups of them with rates of their own.
        settings: which optimizer.
        learning_rate: of parameters whose group has none.
    """
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, learning_rate, settings.momentum, weight_decay=decay, fused=True
        )
    return torch.optim.Adam(parameters, learning_rate, weight_decay=decay, fused=True)


def labelled_loss(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the task's loss; with labels that were mixed into shares, their cross entropy."""
    if labels.is_floating_point():
        return shares_loss(logits, labels, task)
    return task.loss(logits, labels)


def view_of(settings: ViewSettings, task: Task, generator: np.random.Generator) -> View | None:
    """Return what settings say is shown of each batch; ``None`` for the images as they are."""
    if settings.views == "none" and not settings.mixup:
        return None

    def view(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return labelled_view(pixels, labels, task, settings.views, settings.mixup, generator)

    return view


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return what a learning rate is multiplied by at a step, from 0, of ``steps``.

    ``"cosine"`` rises linearly over the first fifty steps and falls to zero along half a cosine.
    """
    if schedule == "constant":
        return 1.0
    warm = min(1.0, (step + 1) / min(_WARMUP, steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def batch_indices(
    images: int, batch_size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield shuffled batches without end; the last batch of a pass is kept if it has 2 or more.

    A batch of one image is left out because batch normalisation cannot train on it; a hospital
    with a single image trains on that image twice.
    """
    if images == 1:
        while True:
            yield np.zeros(2, dtype=np.int64)
    while True:
        order = generator.permutation(images)
        for first in range(0, images, batch_size):
            batch = order[first : first + batch_size]
            if len(batch) > 1:
                yield batch


def task_step(
    model: nn.Module,
    data: Split,
    indices: NDArray[np.int64],
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    flip: NDArray[np.bool_] | None = None,
    view: View | None = None,
    add_gradient: Callable[[], None] | None = None,
    loss: Loss | None = None,
) -> float:
    """Take one optimizer step on the task; return the loss.

    Args:
        model, data, task, optimizer: as everywhere.
        indices: the batch.
        flip: which images of the batch, with their masks, are flipped left to right.
        view: what is shown of the batch; mixed labels are learned by cross entropy.
        add_gradient: called after the backward pass; may add to the parameters' gradients.
        loss: what is minimised, where it is not the task's own loss.
    """
    device = next(model.parameters()).device
    pixels, labels = data.batch(indices)
    if flip is not None:
        mask = torch.from_numpy(flip)
        pixels[mask] = pixels[mask].flip(-1)
        if task.is_segmentation:
            labels[mask] = labels[mask].flip(-1)
    if view is not None:
        pixels, labels = view(pixels, labels)
    optimizer.zero_grad(set_to_none=True)
    inputs, labels = normalized(pixels.to(device)), labels.to(device)
    logits = model(inputs)
    value = labelled_loss(task, logits, labels) if loss is None else loss(logits, inputs, labels)
    value.backward()
    if add_gradient is not None:
        add_gradient()
    optimizer.step()
    return float(value.detach())


def private_step(
    model: nn.Module,
    data: Split,
    indices: NDArray[np.int64],
    task: Task,
    optimizer: torch.optim.Optimizer,
    gradients: PrivateGradients,
    *,
    flip: NDArray[np.bool_] | None = None,
    add_gradient: Callable[[], None] | None = None,
) -> float:
    """Take one optimizer step on the task with private gradients; see :func:`task_step`.

    What ``add_gradient`` adds is neither clipped nor noised.
    """
    device = next(model.parameters()).device
    flipped = dict(zip(indices.tolist(), flip, strict=True)) if flip is not None else {}

    def loss_of(index: int) -> torch.Tensor:
        pixels, labels = data.batch(slice(index, index + 1))
        if flipped.get(index):
            pixels = pixels.flip(-1)
            labels = labels.flip(-1) if task.is_segmentation else labels
        return task.loss(model(normalized(pixels.to(device))), labels.to(device))

    value = gradients.fill(indices, loss_of)
    if add_gradient is not None:
        add_gradient()
    optimizer.step()
    return value


@dataclass(frozen=True)
class Window:
    """Which part of the whole training a call is, so that schedules can follow it across rounds.

    A centralized run is ``Window(0, 1)``; round ``r`` of ``R`` is ``Window((r - 1) / R, r / R)``.
    """

    start: float = 0.0
    end: float = 1.0

    def steps_by(self, position: float, steps: int) -> int:
        """Return how many steps the run has by a position in it, if this part has ``steps``."""
        return round(steps * position / (self.end - self.start))


WHOLE_RUN = Window()


@dataclass(frozen=True)
class LocalTraining:
    """What a hospital, or the owner of a data lake, hands to the code that trains.

    Args:
        model: the network, trained in place.
        spec: how it is built.
        data: local images.
        task: their task.
        settings: optimizer, epochs and so on.
        stream: where randomness is derived from.
        window: which part of the whole training this is.
        proximal: FedProx's penalty, if any.
        progress: where to report.
    """

    model: nn.Module
    spec: ModelSpec
    data: Split
    task: Task
    settings: TrainingSettings
    stream: Stream
    window: Window = WHOLE_RUN
    proximal: Proximal | None = None
    progress: Progress = SILENT


class StepHooks:
    """What an attack may do around the task's steps; override any method."""

    def before_step(self, done: float, optimizer: torch.optim.Optimizer) -> None:
        """Called before a step with the share of this training that is done, in [0, 1)."""

    def add_gradient(self) -> None:
        """Called between a step's backward pass and its update."""

    def after_step(self) -> dict[str, float]:
        """Called after a step; returns losses by name, for the report."""
        return {}


HONEST = StepHooks()


def train(run: LocalTraining, hooks: StepHooks = HONEST) -> TrainReport:
    """Train a network on its task, in place.

    Args:
        run: what is trained, on what, and how.
        hooks: an attack's part; honest training has none.

    Raises:
        FlSimError: if there are no images, a loss is no longer finite, or the network cannot be
            trained privately and is to be.
    """
    if len(run.data) == 0:
        raise FlSimError("There are no images to train on.")
    began = time.perf_counter()
    settings, steps = run.settings, run.settings.steps(len(run.data))
    generator = run.stream.numpy("batches")
    batches = batch_indices(len(run.data), settings.batch_size, generator)
    private = _private_gradients(run, steps)
    if private is not None:
        batches = poisson_batches(len(run.data), private.rate, generator)
    optimizer = make_optimizer(run.model.parameters(), settings, settings.learning_rate)
    step_of: Callable[..., float] = partial(task_step, view=view_of(settings, run.task, generator))
    if private is not None:
        step_of = partial(private_step, gradients=private)
    report = TrainReport(steps=steps)

    def add_gradient() -> None:
        if run.proximal is not None:
            run.proximal.add_gradient(run.model)
        hooks.add_gradient()

    run.model.train()
    what = "training" if hooks is HONEST else "attack"
    with run.stream.seeded("dropout"), piece(run.progress, what, steps):
        for step in range(steps):
            indices = next(batches)
            flip = generator.random(len(indices)) < 0.5 if settings.flip else None
            _set_rate(optimizer, run, step, steps)
            hooks.before_step(step / steps, optimizer)
            loss = step_of(
                run.model,
                run.data,
                indices,
                run.task,
                optimizer,
                flip=flip,
                add_gradient=add_gradient,
            )
            losses = {"task": loss, **hooks.after_step()}
            _refuse_divergence(losses, step, steps, settings)
            report.images += len(indices)
            for name, value in losses.items():
                report.losses.setdefault(name, []).append(value)
            run.progress.step(" ".join(f"{name} {value:.3f}" for name, value in losses.items()))
    if private is not None:
        report.dp_epsilon = private.epsilon(run.window.steps_by(run.window.end, steps))
    report.seconds = time.perf_counter() - began
    return report


def _set_rate(optimizer: torch.optim.Optimizer, run: LocalTraining, step: int, steps: int) -> None:
    """Set the task's rate for where the whole run stands, of which this training is a part."""
    before, whole = (run.window.steps_by(end, steps) for end in (run.window.start, 1.0))
    factor = rate_factor(run.settings.schedule, before + step, max(whole, before + steps))
    for group in optimizer.param_groups:
        group["lr"] = run.settings.learning_rate * factor


def _private_gradients(run: LocalTraining, steps: int) -> PrivateGradients | None:
    dp = run.settings.dp
    if dp is None:
        return None
    check_private(run.model, run.spec)
    return PrivateGradients(
        run.model.parameters(),
        dp,
        images=len(run.data),
        batch_size=run.settings.batch_size,
        steps=run.window.steps_by(1, steps),
        generator=run.stream.torch_generator("private noise"),
    )


def _refuse_divergence(
    losses: dict[str, float], step: int, steps: int, settings: TrainingSettings
) -> None:
    where = "[training]" if len(losses) == 1 else "[attack] or [training]"
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FlSimError(
                f"The {name} loss became {value} at step {step + 1} of {steps}; lower the "
                f"learning_rate of {where} (the task's is {settings.learning_rate:g})."
            )


@torch.no_grad()
def predict(model: nn.Module, data: Split, task: Task, batch_size: int = 256) -> torch.Tensor:
    """Return the model's answers on a split, in evaluation mode.

    Args:
        model, data, task: as everywhere.
        batch_size: images at once; of large images to be segmented fewer.

    Returns:
        Probabilities ``[n, outputs]``; for a segmentation the most probable class of each pixel,
        see :func:`fl_sim.data.base.predicted_masks`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    if task.is_segmentation:
        pixels_an_image = data.images.shape[1] * data.images.shape[2]
        batch_size = min(batch_size, max(1, PREDICTED_PIXELS // pixels_an_image))
    parts = []
    for first in range(0, len(data), batch_size):
        pixels, _ = data.batch(slice(first, first + batch_size))
        scores = task.scores(model(normalized(pixels.to(device))))
        parts.append((predicted_masks(scores) if task.is_segmentation else scores).cpu())
    model.train(was_training)
    return torch.cat(parts)
