"""A reconstructor of transposed convolutions: from a whole head and a class to that class's image.

As in the code that Allison et al. 2025 (arXiv 2505.14323) published: the standardised weights of
the head and the class go through a linear layer to 4 x 4 pixels, which residual blocks double until
the image's size is reached. Adam with rate 2e-4 and batches of 32; the loss is half the mean square
and half the mean absolute error, and with several images of a class a soft minimum over them, so
that one image is answered and not their mean.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.reconstruction.population import Population
from fl_sim.reconstruction.ridge import (
    Gauge,
    fitted_heads,
    mean_images,
    moments,
    standardised,
)
from fl_sim.settings import Settings

_SMALLEST = 4
_CHOSEN_ON = 256


class ConvolutionSettings(Settings):
    """How the network of transposed convolutions is trained.

    Args:
        epochs: passes over the shadow heads.
        width: channels at 4 x 4 pixels; half as many after each doubling, 8 at least.
        learning_rate: of Adam.
        batch_size: pairs of head and class in a step.
        softness: of the soft minimum over a class's images, in units of the loss.
    """

    epochs: int = Field(5, ge=1, le=1000)
    width: int = Field(64, ge=8, le=1024)
    learning_rate: float = Field(2e-4, gt=0)
    batch_size: int = Field(32, ge=2)
    softness: float = Field(0.01, gt=0)


class _Doubling(nn.Module):
    """A residual block that doubles the side."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1),
            nn.GroupNorm(1, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(1, outputs),
        )
        self.past = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, outputs, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.way(images) + self.past(images))


class _Network(nn.Module):
    def __init__(self, inputs: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.width, self.size = width, shape[1:]
        self.first = nn.Linear(inputs, width * _SMALLEST**2)
        blocks, side, channels = [], _SMALLEST, width
        while side < max(self.size):
            outputs = max(8, channels // 2)
            blocks.append(_Doubling(channels, outputs))
            side, channels = 2 * side, outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels, shape[0], 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return images ``[n, channels, height, width]`` in [0, 1]."""
        small = torch.relu(self.first(inputs)).unflatten(1, (self.width, _SMALLEST, _SMALLEST))
        whole = nn.functional.interpolate(
            self.blocks(small), size=self.size, mode="bilinear", align_corners=False
        )
        return (torch.tanh(self.last(whole)) + 1) / 2


@dataclass(frozen=True)
class Convolutions:
    """A reconstructor that has been trained on shadow heads.

    Args:
        mean, deviation: ``[classes, D + 1]``, of shadow heads.
        network: from standardised heads and a class to an image.
        gauge: what heads are known up to.
        error: least mean square error to a class's images, on heads that it was not trained on.
        class_mean_error: of each class's mean image there, which needs no head.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    network: nn.Module
    gauge: Gauge
    error: float
    class_mean_error: float

    @torch.no_grad()
    def reconstruct(self, weights: torch.Tensor) -> torch.Tensor:
        """Return one image of each class for each head.

        Args:
            weights: ``[heads, classes, D + 1]``, the bias last.

        Returns:
            float32 ``[heads, classes, channels, height, width]`` in [0, 1].

        Raises:
            FlSimError: if the heads have another shape than the shadow heads.
        """
        if weights.shape[1:] != self.mean.shape:
            raise FlSimError(
                f"The head is {list(weights.shape[1:])}, but the shadow heads are "
                f"{list(self.mean.shape)} (classes, features and bias)."
            )
        known = standardised(weights, self.gauge, self.mean, self.deviation)
        images = [self.network(_inputs(known, label)) for label in range(weights.shape[1])]
        return torch.stack(images, dim=1)


def fit_convolutions(
    shadows: Population,
    pixels: torch.Tensor,
    settings: ConvolutionSettings,
    stream: Stream,
    *,
    gauge: Gauge = "weights",
    validation: float = 0.1,
    progress: Progress = SILENT,
) -> Convolutions:
    """Train the network; of all epochs the one that is best on other shadow heads is kept.

    Args:
        shadows: heads, whose sets are of equally many images a class, class by class.
        pixels: ``[images, channels, height, width]`` in [0, 1], of the shadows' features.
        settings: how.
        stream: where weights and order are drawn from.
        gauge: what heads are known up to.
        validation: share of the heads, the last ones, on which the epoch is chosen.
        progress: where to report.

    Raises:
        FlSimError: if there are too few heads to train and choose on.
    """
    kept = fitted_heads(len(shadows), validation)
    mean, deviation = moments(shadows, kept, gauge)
    with stream.seeded("reconstructor"):
        network = _Network(mean.numel() + len(mean), tuple(pixels.shape[1:]), settings.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    generator = stream.numpy("order of shadow heads")
    best, found = float("inf"), network.state_dict()
    with piece(progress, "convolutions", settings.epochs * kept):
        for _ in range(settings.epochs):
            for rows, weights in shadows.chunks(0, kept):
                known = standardised(weights, gauge, mean, deviation)
                for inputs, own in _batches(known, rows, settings.batch_size, generator):
                    loss = _loss(network(inputs), pixels[own], settings.softness)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                progress.step(advance=len(rows))
            model = Convolutions(mean, deviation, network, gauge, 0.0, 0.0)
            error, _ = _errors(model, shadows, pixels, kept)
            if error < best:
                best, found = error, copy.deepcopy(network.state_dict())
    network.load_state_dict(found)
    model = Convolutions(mean, deviation, network.eval(), gauge, 0.0, 0.0)
    return Convolutions(mean, deviation, network, gauge, *_errors(model, shadows, pixels, kept))


def _inputs(known: torch.Tensor, label: int) -> torch.Tensor:
    """Return whole heads with a class, ``[heads, classes (D + 1) + classes]``."""
    which = torch.zeros(len(known), known.shape[1])
    which[:, label] = 1
    return torch.cat([known.flatten(1), which], dim=1)


def _batches(
    known: torch.Tensor, rows: NDArray[np.int32], size: int, generator: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs ``[n, ...]`` and the images ``[n, per_class]`` of a chunk, in random order."""
    heads, classes, _ = known.shape
    own = torch.from_numpy(rows).long().reshape(heads, classes, -1)
    pairs = generator.permutation(heads * classes)
    which = torch.eye(classes)
    for start in range(0, len(pairs), size):
        head, label = np.divmod(pairs[start : start + size], classes)
        inputs = torch.cat([known[head].flatten(1), which[label]], dim=1)
        yield inputs, own[head, label]


def _loss(images: torch.Tensor, originals: torch.Tensor, softness: float) -> torch.Tensor:
    """Return the mean of the soft minimum of errors to a class's images.

    Args:
        images: ``[n, channels, height, width]``.
        originals: ``[n, per_class, channels, height, width]``.
        softness: of the minimum; 0 would be the hard one.
    """
    away = (images[:, None] - originals).flatten(2)
    errors = (away.square().mean(dim=2) + away.abs().mean(dim=2)) / 2
    if errors.shape[1] == 1:
        return errors.mean()
    share = torch.softmax(-errors.detach() / softness, dim=1)
    return (share * errors).sum(dim=1).mean()


def _errors(
    model: Convolutions, shadows: Population, pixels: torch.Tensor, kept: int
) -> tuple[float, float]:
    """Return the mean least error on heads that were not trained on, and the class means'."""
    last = min(len(shadows), kept + _CHOSEN_ON)
    rows = shadows.rows[kept:last]
    images = model.reconstruct(shadows.weights(kept, last))
    flat = pixels.flatten(1)
    trained_on = shadows.rows[: min(kept, 4096)]
    mean = mean_images(flat, trained_on, shadows.classes).reshape(
        len(trained_on), shadows.classes, -1
    )
    own = flat[torch.from_numpy(rows).long()].reshape(len(rows), shadows.classes, -1, flat.shape[1])

    def error(guess: torch.Tensor) -> float:
        return float((guess[:, :, None] - own).square().mean(dim=3).amin(dim=2).mean())

    return error(images.flatten(2)), error(mean.mean(dim=0, keepdim=True).expand(len(rows), -1, -1))
