"""Ordinary local training: what every hospital does, and the classification half of an attack."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import numpy_generator, seeded
from fl_sim.settings import Settings


class TrainingSettings(Settings):
    """How a network is trained on its task.

    Args:
        epochs: passes over the local images (centralized), or passes in each round (federated).
        batch_size: images a step.
        optimizer: ``"adam"`` or ``"sgd"`` (with ``momentum``).
        learning_rate: of the task.
        momentum: of SGD.
        weight_decay: L2 penalty.
        flip: whether training images are flipped left to right at random.
    """

    epochs: float = Field(8.0, gt=0)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(3e-4, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    flip: bool = False

    def steps(self, images: int) -> int:
        """Number of optimizer steps for ``images`` local images, at least one."""
        return max(1, math.ceil(self.epochs * math.ceil(images / self.batch_size)))


@dataclass
class TrainReport:
    """What training did: steps, images seen, seconds, and loss curves by name."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=dict)


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


def normalized(images: torch.Tensor) -> torch.Tensor:
    """Map pixels in [0, 1] to [-1, 1], what every network here takes."""
    return images * 2.0 - 1.0


def make_optimizer(
    parameters: Iterator[nn.Parameter] | list[nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """Build the task's optimizer, fused: six times faster for ResNet18 on a CPU."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    return torch.optim.Adam(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


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
    proximal: Proximal | None = None,
) -> float:
    """Take one optimizer step on the task; return the loss."""
    device = next(model.parameters()).device
    pixels, labels = data.batch(indices)
    if flip is not None:
        mask = torch.from_numpy(flip)
        pixels[mask] = pixels[mask].flip(-1)
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(model(normalized(pixels.to(device))), labels.to(device))
    loss.backward()
    if proximal is not None:
        proximal.add_gradient(model)
    optimizer.step()
    return float(loss.detach())


def train(
    model: nn.Module,
    data: Split,
    task: Task,
    settings: TrainingSettings,
    seed: int,
    *path: int | str,
    proximal: Proximal | None = None,
    progress: Progress = SILENT,
) -> TrainReport:
    """Train a network on its task, in place.

    Args:
        model: any classifier with ``task.outputs`` outputs.
        data: local images.
        task: their task.
        settings: optimizer, epochs and so on.
        seed, path: where its randomness is derived from; see :mod:`fl_sim.randomness`.
        proximal: FedProx's penalty, if any.
        progress: where to report.

    Raises:
        FlSimError: if there are no images, or the loss is no longer finite.
    """
    if len(data) == 0:
        raise FlSimError("There are no images to train on.")
    began = time.perf_counter()
    steps = settings.steps(len(data))
    generator = numpy_generator(seed, "batches", *path)
    batches = batch_indices(len(data), settings.batch_size, generator)
    optimizer = make_optimizer(list(model.parameters()), settings)
    report = TrainReport(steps=steps)
    model.train()
    with seeded(seed, "dropout", *path), piece(progress, "training", steps):
        for step in range(steps):
            indices = next(batches)
            flip = generator.random(len(indices)) < 0.5 if settings.flip else None
            loss = task_step(model, data, indices, task, optimizer, flip=flip, proximal=proximal)
            if not math.isfinite(loss):
                raise FlSimError(
                    f"The training loss became {loss} at step {step + 1} of {steps}; "
                    f"lower [training] learning_rate (now {settings.learning_rate:g})."
                )
            report.images += len(indices)
            report.losses.setdefault("task", []).append(loss)
            progress.step(f"loss {loss:.3f}")
    report.seconds = time.perf_counter() - began
    return report


@torch.no_grad()
def predict(model: nn.Module, data: Split, task: Task, batch_size: int = 256) -> torch.Tensor:
    """Return the model's probabilities ``[n, outputs]`` on a split, in evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    for first in range(0, len(data), batch_size):
        pixels, _ = data.batch(slice(first, first + batch_size))
        parts.append(task.scores(model(normalized(pixels.to(device)))).cpu())
    model.train(was_training)
    return torch.cat(parts)
