"""A ridge reconstructor: a linear way from a head's weights to the images of each class."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.reconstruction.population import Population

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges to choose from, times the mean square of what the images are predicted from."""

_MOST_CHOSEN = 10_000
_MOST_MOMENTS = 4096

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
        inputs = _inputs(standardised(weights, self.gauge, self.mean, self.deviation))
        pixels = inputs.flatten(0, 1) @ self.map
        return pixels.clamp(0, 1).reshape(*weights.shape[:2], *self.shape)


class _Sums:
    """Sums that least squares needs, of as many heads as come.

    A class's inputs are its own row ``a``, the mean of the other rows ``(t - a) / (classes - 1)``
    with the heads' sum of rows ``t``, and which class it is. So sums of ``a a^T`` and ``t t^T``
    give all products of inputs; and sums of ``a`` and ``t`` by image give all products with pixels,
    since the target is a mean of images.

    Args:
        classes: rows of a head.
        inputs: entries of a row.
        images: that the attacker has.
    """

    def __init__(self, classes: int, inputs: int, images: int) -> None:
        self.classes = classes
        self.own = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.total = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.by_class = torch.zeros(classes, inputs, dtype=torch.float64)
        self.by_image = torch.zeros(images, 2 * inputs + classes, dtype=torch.float64)
        self.outputs = 0.0
        self.heads = 0

    def add(self, known: torch.Tensor, rows: NDArray[np.int32]) -> None:
        """Add heads.

        Args:
            known: ``[heads, classes, inputs]``, standardised.
            rows: ``[heads, N]``, images they were trained on, class by class.
        """
        total = known.sum(dim=1)
        flat = known.flatten(0, 1)
        self.own += (flat.T @ flat).double()
        self.total += (total.T @ total).double()
        self.by_class += known.sum(dim=0).double()
        self.by_image += _by_image(_inputs(known), rows, len(self.by_image))
        self.heads += len(known)

    def products(self) -> torch.Tensor:
        """Return the sum of products of inputs, ``[inputs, inputs]`` as :func:`_inputs` has them.

        With ``S`` the sum of ``a a^T`` over all classes, and ``T`` that of ``t t^T``.
        """
        others = max(1, self.classes - 1)
        mixed = (self.total - self.own) / others
        both = ((self.classes - 2) * self.total + self.own) / others**2
        rest = (self.by_class.sum(dim=0) - self.by_class) / others
        which = torch.cat([self.by_class, rest], dim=1)
        counts = torch.eye(self.classes, dtype=torch.float64) * self.heads
        upper = torch.cat([self.own, mixed, self.by_class.T], dim=1)
        middle = torch.cat([mixed.T, both, rest.T], dim=1)
        return torch.cat([upper, middle, torch.cat([which, counts], dim=1)])

    def with_pixels(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the sum of products of inputs and targets, ``[inputs, pixels]``."""
        return self.by_image.T @ flat.double()


def _error(sums: _Sums, flat: torch.Tensor, fitted: torch.Tensor) -> float:
    """Return the mean square error of a map ``[inputs, pixels]`` on heads."""
    square = ((sums.products() @ fitted - 2 * sums.with_pixels(flat)) * fitted).sum()
    return float(sums.outputs + square) / (sums.heads * sums.classes * flat.shape[1])


def _by_image(inputs: torch.Tensor, rows: NDArray[np.int32], images: int) -> torch.Tensor:
    """Return the sum, by image, of the inputs of heads and classes that it was used in.

    Args:
        inputs: ``[heads, classes, inputs]``.
        rows: ``[heads, N]``, class by class; each image counts as its share of its class's.
        images: how many there are.
    """
    from scipy.sparse import csr_array

    heads, classes, _ = inputs.shape
    per_class = rows.shape[1] // classes
    columns = np.repeat(np.arange(heads * classes), per_class)
    share = np.full(rows.size, 1 / per_class, dtype=np.float32)
    used = csr_array((share, (rows.ravel(), columns)), shape=(images, heads * classes))
    return torch.from_numpy(used @ inputs.flatten(0, 1).numpy()).double()


def fit_ridge(
    shadows: Population,
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
    kept = fitted_heads(len(shadows), validation)
    flat = pixels.float().flatten(1)
    fit, chosen = (_Sums(shadows.classes, shadows.inputs, len(flat)) for _ in range(2))
    mean, deviation = moments(shadows, kept, gauge, size)
    with piece(progress, "ridge", len(shadows)):
        for sums, first, last in ((fit, 0, kept), (chosen, kept, len(shadows))):
            for rows, weights in shadows.chunks(first, last, size):
                sums.add(standardised(weights, gauge, mean, deviation), rows)
                if sums is chosen:
                    targets = mean_images(flat, rows, shadows.classes)
                    sums.outputs += float(targets.double().square().sum())
                progress.step(advance=len(rows))
    penalty, fitted, error = _choose(fit, chosen, flat)
    own = slice(2 * shadows.inputs, None)
    means = torch.zeros_like(fitted)
    means[own] = fit.with_pixels(flat)[own] / fit.heads
    return Ridge(
        mean,
        deviation,
        fitted.float(),
        tuple(pixels.shape[1:]),
        gauge,
        penalty,
        error,
        _error(chosen, flat, means),
    )


def fitted_heads(heads: int, validation: float) -> int:
    """Return how many heads a reconstructor is fitted to; it is chosen on the rest.

    Args:
        heads: in all.
        validation: share of them that is left to choose on, of 10,000 heads at most.

    Raises:
        FlSimError: if none is left to fit on.
    """
    kept = heads - min(_MOST_CHOSEN, max(1, round(validation * heads)))
    if kept < 1:
        raise FlSimError(
            f"With {heads} shadow heads none is left to fit on; raise shadows or lower "
            f"validation ({validation:g})."
        )
    return kept


def moments(
    shadows: Population, last: int, gauge: Gauge, size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation ``[classes, inputs]`` of the first heads, of 4,096 at most.

    They only bring entries to one size; what is fitted then takes all heads.

    Args:
        shadows: the heads.
        last: how many of them are fitted to.
        gauge: what heads are known up to.
        size: heads in a chunk.
    """
    last = min(last, _MOST_MOMENTS)
    # About the first head's weights, so that nothing is lost where they hardly differ.
    about = in_gauge(shadows.weights(0, 1).float(), gauge)[0]
    total = torch.zeros(about.shape, dtype=torch.float64)
    square = torch.zeros_like(total)
    for _, weights in shadows.chunks(0, last, size):
        away = (in_gauge(weights.float(), gauge) - about).double()
        total += away.sum(dim=0)
        square += away.square().sum(dim=0)
    mean = total / last
    deviation = (square / last - mean.square()).clamp_min(0).sqrt()
    # Entries that never change tell nothing; a deviation of 1 makes them 0.
    deviation[deviation < 1e-12] = 1.0
    return (about.double() + mean).float(), deviation.float()


def standardised(
    weights: torch.Tensor, gauge: Gauge, mean: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """Return heads in a gauge, less the shadow heads' mean, in units of their deviation."""
    return (in_gauge(weights.float(), gauge) - mean) / deviation


def mean_images(flat: torch.Tensor, rows: NDArray[np.int32], classes: int) -> torch.Tensor:
    """Return the mean image of each class in each set, ``[heads * classes, pixels]``."""
    images = flat[torch.from_numpy(rows).long()]
    return images.reshape(len(rows) * classes, -1, flat.shape[1]).mean(dim=1)


def _inputs(known: torch.Tensor) -> torch.Tensor:
    """Return what images are predicted from, ``[heads, classes, 2 (D + 1) + classes]``."""
    heads, classes, _ = known.shape
    others = (known.sum(dim=1, keepdim=True) - known) / max(1, classes - 1)
    which = torch.eye(classes).expand(heads, -1, -1)
    return torch.cat([known, others, which], dim=2)


def _choose(fit: _Sums, chosen: _Sums, flat: torch.Tensor) -> tuple[float, torch.Tensor, float]:
    """Return the best ridge, its map and its error on the heads that it was not fitted to."""
    products = fit.products()
    values, vectors = torch.linalg.eigh(products)
    scale = float(products.diagonal().mean())
    turned = vectors.T @ fit.with_pixels(flat)
    best: tuple[float, torch.Tensor, float] | None = None
    for penalty in PENALTIES:
        fitted = vectors @ (turned / (values.clamp_min(0) + penalty * scale)[:, None])
        error = _error(chosen, flat, fitted)
        if best is None or error < best[2]:
            best = (penalty, fitted, error)
    assert best is not None
    return best
