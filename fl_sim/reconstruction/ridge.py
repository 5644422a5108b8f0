"""A ridge reconstructor: a linear way from a head's weights to the images of each class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.reconstruction.shadows import Shadows

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges to choose from, times the mean square of what the images are predicted from."""

Gauge = Literal["weights", "decisions"]
"""Up to what a head is known: ``"weights"`` exactly; ``"decisions"`` up to a common row and a
factor, which change no decision."""


def in_gauge(weights: torch.Tensor, gauge: Gauge) -> torch.Tensor:
    """Return heads without what a gauge leaves open, ``[heads, classes, D + 1]`` as given."""
    if gauge == "weights":
        return weights
    centred = weights - weights.mean(dim=1, keepdim=True)
    return centred / centred.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]


@dataclass(frozen=True)
class Ridge:
    """A reconstructor that has been fitted to shadow heads.

    Args:
        mean, deviation: ``[classes, D + 1]``, of shadow heads.
        map: ``[inputs, pixels]``, from standardised weights and the class to pixels.
        shape: of an image: ``(channels, height, width)``.
        gauge: what heads are known up to.
        penalty: the ridge that was best on other shadow heads.
        error: its mean square error there.
        class_mean_error: of each class's mean image there, which needs no head.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    map: torch.Tensor
    shape: tuple[int, ...]
    gauge: Gauge
    penalty: float
    error: float
    class_mean_error: float

    def reconstruct(self, weights: torch.Tensor) -> torch.Tensor:
        """Return one image of each class for each head.

        Args:
            weights: ``[heads, classes, D + 1]``, the bias last (0 where there is none).

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
        inputs = _inputs(in_gauge(weights.float(), self.gauge), self.mean, self.deviation)
        pixels = inputs.flatten(0, 1) @ self.map
        return pixels.clamp(0, 1).reshape(*weights.shape[:2], *self.shape)


class _Sums:
    """Sums that least squares needs, of as many rows as come."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.inputs = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.both = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.outputs = 0.0
        self.rows = 0

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        self.inputs += (inputs.T @ inputs).double()
        self.both += (inputs.T @ outputs).double()
        self.outputs += float(outputs.double().square().sum())
        self.rows += len(inputs)

    def error(self, fitted: torch.Tensor) -> float:
        """Return the mean square error of a map ``[inputs, outputs]``."""
        square = ((self.inputs @ fitted - 2 * self.both) * fitted).sum()
        return float(self.outputs + square) / (self.rows * self.both.shape[1])


def fit_ridge(
    shadows: Shadows,
    pixels: torch.Tensor,
    *,
    gauge: Gauge = "weights",
    validation: float = 0.1,
    size: int | None = None,
    progress: Progress = SILENT,
) -> Ridge:
    """Fit a ridge regression from shadow heads to the images that they were trained on.

    A class's image (the mean of its images in the set, which is what least squares of all of them
    would give) is predicted from the class's row of the standardised head, the mean of the other
    rows, and which class it is. Heads come chunk by chunk into the normal equations.

    Args:
        shadows: at least 2 heads, whose sets are of equally many images a class, class by class.
        pixels: ``[images, channels, height, width]`` in [0, 1], of the shadows' features.
        gauge: what heads are known up to.
        validation: share of the heads, the last ones, on which the ridge is chosen, in (0, 1).
        size: heads in a chunk; changes only the order of sums.
        progress: where to report.

    Raises:
        FlSimError: if there are too few heads to fit and choose on.
    """
    kept = len(shadows) - max(1, round(validation * len(shadows)))
    if kept < 1:
        raise FlSimError(
            f"With {len(shadows)} shadow heads none is left to fit on; raise shadows or lower "
            f"validation ({validation:g})."
        )
    flat = pixels.float().flatten(1)
    outputs = flat.shape[1]
    inputs = 2 * shadows.features.shape[1] + shadows.classes
    fit, chosen = _Sums(inputs, outputs), _Sums(inputs, outputs)
    with piece(progress, "ridge", 2 * len(shadows)):
        mean, deviation = _moments(shadows, kept, gauge, size, progress)
        for sums, first, last in ((fit, 0, kept), (chosen, kept, len(shadows))):
            for rows, weights in shadows.chunks(first, last, size):
                known = _inputs(in_gauge(weights.float(), gauge), mean, deviation)
                sums.add(known.flatten(0, 1), _targets(flat, rows, shadows.classes))
                progress.step(advance=len(rows))
    penalty, fitted, error = _choose(fit, chosen)
    own = slice(inputs - shadows.classes, inputs)
    means = torch.zeros_like(fit.both)
    means[own] = fit.both[own] / fit.inputs.diagonal()[own, None]
    return Ridge(
        mean,
        deviation,
        fitted.float(),
        tuple(pixels.shape[1:]),
        gauge,
        penalty,
        error,
        chosen.error(means),
    )


def _moments(
    shadows: Shadows, last: int, gauge: Gauge, size: int | None, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation ``[classes, D + 1]`` of the first heads."""
    shape = (shadows.classes, shadows.features.shape[1])
    # About the first head's weights, so that nothing is lost where they hardly differ.
    about = in_gauge(shadows.weights(0, 1).float(), gauge)[0]
    total, square = torch.zeros(shape).double(), torch.zeros(shape).double()
    for rows, weights in shadows.chunks(0, last, size):
        away = (in_gauge(weights.float(), gauge) - about).double()
        total += away.sum(dim=0)
        square += away.square().sum(dim=0)
        progress.step(advance=len(rows))
    mean = total / last
    deviation = (square / last - mean.square()).clamp_min(0).sqrt()
    # Entries that never change tell nothing; a deviation of 1 makes them 0.
    deviation[deviation < 1e-12] = 1.0
    return (about.double() + mean).float(), deviation.float()


def _inputs(weights: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return what images are predicted from, ``[heads, classes, 2 (D + 1) + classes]``."""
    known = (weights - mean) / deviation
    heads, classes, _ = known.shape
    others = (known.sum(dim=1, keepdim=True) - known) / max(1, classes - 1)
    which = torch.eye(classes).expand(heads, -1, -1)
    return torch.cat([known, others, which], dim=2)


def _targets(flat: torch.Tensor, rows: NDArray[np.int32], classes: int) -> torch.Tensor:
    """Return the mean image of each class in each set, ``[heads * classes, pixels]``."""
    images = flat[torch.from_numpy(rows).long()]
    return images.reshape(len(rows) * classes, -1, flat.shape[1]).mean(dim=1)


def _choose(fit: _Sums, chosen: _Sums) -> tuple[float, torch.Tensor, float]:
    """Return the best ridge, its map and its error on the heads that it was not fitted to."""
    values, vectors = torch.linalg.eigh(fit.inputs)
    scale = float(fit.inputs.diagonal().mean())
    turned = vectors.T @ fit.both
    best: tuple[float, torch.Tensor, float] | None = None
    for penalty in PENALTIES:
        fitted = vectors @ (turned / (values.clamp_min(0) + penalty * scale)[:, None])
        error = chosen.error(fitted)
        if best is None or error < best[2]:
            best = (penalty, fitted, error)
    assert best is not None
    return best
