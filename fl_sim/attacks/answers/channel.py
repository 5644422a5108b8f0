"""The channel: numbers of an image that answers are made to depend on, and how they are read.

Features are the whitened principal components of public images, averaged down to few pixels: what
a network that never saw the attacked weights learns first of another's answers. A model's
coefficients are those of the linear regression of its answers on the features of public images;
each of them, of a feature and a direction of the answers, holds one bit. Other channels, with
coefficients of another kind: :mod:`fl_sim.attacks.answers.triggers` and
:mod:`fl_sim.attacks.answers.memories`.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.training import normalized

_BATCH = 512
_MOST_QUERIES = 1024
_RIDGE = 1e-2
FEWEST = 16
"""Public images without which nothing can be asked."""


@dataclass(frozen=True)
class Features:
    """Whitened features of images.

    Args:
        side: pixels a side that images are averaged down to.
        mean: of the averaged pixels, float32 ``[channels * side * side]``.
        projection: to whitened components, float32 ``[channels * side * side, features]``.
    """

    side: int
    mean: torch.Tensor
    projection: torch.Tensor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``[n, features]``, of variance about 1 over images of the kind.

        Args:
            images: ``[n, channels, height, width]`` in [0, 1].
        """
        pooled = adaptive_avg_pool2d(images, self.side).flatten(1)
        return (pooled - self.mean) @ self.projection


def learn_features(public: Split, task: Task, count: int, side: int, spare: int) -> Features:
    """Return the strongest principal components of public images in all orientations.

    Args:
        public: images of the same kind as the hospital's, with labels.
        task: theirs.
        count: features wanted.
        side: see :class:`Features`.
        spare: directions between the means of the classes that are left out.

    Raises:
        FlSimError: if there are too few public images, or fewer components than wanted.
    """
    pixels, labels = public.tensors()
    pooled = adaptive_avg_pool2d(orientations(pixels), side).flatten(1).double()
    mean = pooled.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(pooled - mean, full_matrices=False)
    spare = 0 if task.multi_label else min(spare, task.outputs - 1)
    usable = int((sizes > 1e-4 * sizes[0]).sum())
    if count + spare > usable:
        raise FlSimError(
            f"[attack] features is {count}, and averages of {side}x{side} pixels of the public "
            f"images have {max(0, usable - spare)} that can be told apart; lower features, raise "
            f"side, or raise [data] public_images."
        )
    kept = slice(0, count + spare)
    projection = axes[kept].T / (sizes[kept] / math.sqrt(len(pooled)))
    if spare:
        whitened = (pooled - mean) @ projection
        projection = projection @ _without_classes(whitened, labels.repeat(8), task.outputs, spare)
    return Features(side, mean.float(), projection.float())


def _without_classes(
    whitened: torch.Tensor, labels: torch.Tensor, classes: int, spare: int
) -> torch.Tensor:
    """Return an orthonormal basis of what is left without the leading class directions."""
    members = one_hot(labels.reshape(-1), classes).double()
    means = (members.T @ whitened) / members.sum(dim=0)[:, None].clamp(min=1)
    _, _, axes = torch.linalg.svd(means - means.mean(dim=0), full_matrices=True)
    left = axes[spare:]
    # The strongest components stay first, as far as they are left.
    order = (left.square() @ torch.arange(left.shape[1]).double()).argsort()
    return left[order].T


def orientations(images: torch.Tensor) -> torch.Tensor:
    """Return all eight orientations of square images, one after the other, ``[8 n, ...]``."""
    return torch.cat(
        [
            torch.rot90(side, turns, (2, 3))
            for side in (images, images.flip(3))
            for turns in range(4)
        ]
    )


def queries_of(public: Split) -> torch.Tensor:
    """Return the public images that the receiver asks about, uint8 ``[n, channels, side, side]``.

    Raises:
        FlSimError: if there are too few.
    """
    if len(public) < FEWEST:
        raise FlSimError(
            f"The attack 'answers' asks about public images, and there are {len(public)}; raise "
            f"[data] public_images to {FEWEST} or more (public= in Python)."
        )
    pixels, _ = public.batch(slice(0, _MOST_QUERIES))
    return (pixels * 255).round().to(torch.uint8)


def directions(outputs: int, multi_label: bool) -> torch.Tensor:
    """Return orthonormal directions of logits, ``[outputs, directions]``.

    Classes have those that sum to zero, since a constant added to all logits is no answer.
    """
    if multi_label:
        return torch.eye(outputs)
    # Helmert's contrasts: the same on every machine.
    matrix = torch.zeros(outputs, outputs - 1)
    for column in range(outputs - 1):
        matrix[: column + 1, column] = 1.0
        matrix[column + 1, column] = -(column + 1.0)
    return matrix / matrix.norm(dim=0)


class Channel(Protocol):
    """What receiver and sender share: how a model's answers are read, and how it is taught them."""

    @property
    def rows(self) -> int:
        """How many rows the coefficients have."""

    @property
    def together(self) -> int:
        """How many of the rows are in the answer to one image."""

    def coefficients(self, model: nn.Module) -> torch.Tensor:
        """Return what the receiver reads from a model, float64 ``[rows, directions]``.

        Args:
            model: a classifier, asked in evaluation mode.
        """

    def taught(
        self, images: torch.Tensor, shift: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the model is taught about, and the logits to be added to its answers.

        Args:
            images: views of the hospital's images, ``[n, channels, side, side]`` in [0, 1].
            shift: of the coefficients, ``[rows, directions]``.
            generator: draws what is taught beside the images as they are.

        Returns:
            Images of the same shape, and logits ``[n, outputs]``.
        """


@dataclass(frozen=True)
class FeatureChannel:
    """Bits in how answers depend on features of images.

    Args:
        features: of images.
        queries: public images, uint8 ``[n, channels, side, side]``.
        multi_label: whether each output is an answer of its own.
    """

    features: Features
    queries: torch.Tensor
    multi_label: bool

    @property
    def rows(self) -> int:
        """How many features there are."""
        return self.features.projection.shape[1]

    @property
    def together(self) -> int:
        """All of them: every image has every feature."""
        return self.rows

    def coefficients(self, model: nn.Module) -> torch.Tensor:
        """Return how a model's answers depend on the features, float64 ``[features, directions]``.

        Args:
            model: a classifier, asked in evaluation mode.
        """
        asked = orientations(self.queries.float() / 255)
        wanted = along(answers_to(model, asked), self.multi_label)
        known = torch.cat([self.features(asked), torch.ones(len(asked), 1)], dim=1).double()
        normal = known.T @ known / len(asked) + _RIDGE * torch.eye(known.shape[1]).double()
        return torch.linalg.solve(normal, known.T @ wanted / len(asked))[:-1]

    def taught(
        self, images: torch.Tensor, shift: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images as they are, and what moves a model's coefficients by ``shift``."""
        return images, across(self.features(images) @ shift.float(), self.multi_label)


def along(answers: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Return the parts of logits ``[n, outputs]`` in each direction, float64."""
    return answers.double() @ directions(answers.shape[1], multi_label).double()


def across(parts: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Return logits ``[n, outputs]`` that have these parts, ``[n, directions]``."""
    outputs = parts.shape[1] if multi_label else parts.shape[1] + 1
    return parts @ directions(outputs, multi_label).T


@torch.no_grad()
def answers_to(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return a model's logits ``[n, outputs]`` for images in [0, 1], in evaluation mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    answers = [model(normalized(batch.to(device))).cpu() for batch in images.split(_BATCH)]
    model.train(training)
    return torch.cat(answers)
