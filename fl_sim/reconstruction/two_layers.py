"""Shadow heads of two layers, trained many at once by ``torch.func.vmap``, and read as linear ones.

The gradient of the first layer's weights lies in the span of the set's own features, as a linear
head's does, so the first layer is kept as coefficients of N x units; ``vmap`` gives the gradients
by units and by the second layer. For a reconstructor a head is its tangent: the gradient of each
logit at one point, which units in another order, or with other signs where they are squared, do not
change, and which has the shape of a linear head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, derive_seed
from fl_sim.reconstruction.draws import normals
from fl_sim.reconstruction.kept import heads_made, identity_of
from fl_sim.reconstruction.population import Population, chunk_size
from fl_sim.reconstruction.shadows import Coefficients
from fl_sim.sealing.heads import Activation, HeadSettings, Linear

Layers = tuple[torch.Tensor, torch.Tensor]

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "square": torch.square,
}


@dataclass(frozen=True)
class TwoLayers(Population):
    """Trained heads of two layers.

    Args:
        features: ``[images, D + 1]``, the last column what the biases are multiplied with.
        sets: ``[heads, N]``, which images each head was trained on.
        first: ``[heads, N, units]``, coefficients of the first layer.
        second: ``[heads, classes, units + 1]``, the second layer, its biases last.
        remaining: share of the initial weights that weight decay has left, in [0, 1].
        init_std: deviation of the initial weights.
        seed: what they are drawn from.
        activation: between the layers.
        point: ``[D]``, where tangents are taken.
    """

    features: torch.Tensor
    sets: NDArray[np.int32]
    first: Coefficients
    second: Coefficients
    remaining: float
    init_std: float
    seed: int
    activation: Activation
    point: torch.Tensor

    @property
    def rows(self) -> NDArray[np.int32]:
        """Which images each head was trained on, ``[heads, N]``."""
        return self.sets

    @property
    def classes(self) -> int:
        """Rows of the second layer."""
        return self.second.shape[1]

    @property
    def inputs(self) -> int:
        """Entries of a tangent's row."""
        return self.features.shape[1]

    def initial(self, first: int, last: int) -> Layers:
        """Return initial layers of some heads; biases are 0."""
        heads, units = range(first, last), self.first.shape[2]
        return initial_layers(
            heads, self.classes, units, self.features.shape[1], self.init_std, self.seed
        )

    def layers(self, first: int, last: int) -> Layers:
        """Return layers ``[heads, units, D + 1]`` and ``[heads, classes, units + 1]`` of heads."""
        own = self.features[torch.from_numpy(self.rows[first:last]).long()]
        found = torch.bmm(self.first[first:last].transpose(1, 2), own)
        found.add_(self.initial(first, last)[0], alpha=self.remaining)
        return found, self.second[first:last]

    def weights(self, first: int, last: int) -> torch.Tensor:
        """Return the tangents of heads, ``[heads, classes, D + 1]``."""
        return tangents(*self.layers(first, last), self.activation, self.point)


def tangents(
    first: torch.Tensor, second: torch.Tensor, activation: Activation, point: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of each logit at a point, and the logit there less its linear part.

    Args:
        first: ``[heads, units, D + 1]``.
        second: ``[heads, classes, units + 1]``.
        activation: between them.
        point: ``[D]``.

    Returns:
        ``[heads, classes, D + 1]``: the tangent as a linear head, its bias last.
    """
    units = first[:, :, :-1] @ point + first[:, :, -1]
    slopes = 2 * units if activation == "square" else (units > 0).to(units.dtype)
    active = _ACTIVATIONS[activation](units)
    turned = second[:, :, :-1] * slopes[:, None]
    weights = torch.bmm(turned, first[:, :, :-1])
    logits = torch.bmm(second[:, :, :-1], active[:, :, None])[:, :, 0] + second[:, :, -1]
    return torch.cat([weights, (logits - weights @ point)[:, :, None]], dim=2)


def tangent_of(head: tuple[Linear, ...], activation: Activation, point: torch.Tensor) -> Linear:
    """Return the linear head that one of two layers is near a point; see :func:`tangents`."""
    first, second = (torch.from_numpy(layer.matrix()).float()[None] for layer in head)
    found = tangents(first, second, activation, point)[0]
    return Linear(found[:, :-1], found[:, -1])


def initial_layers(
    heads: range, classes: int, units: int, inputs: int, init_std: float, seed: int
) -> Layers:
    """Return the initial layers of heads, each by its number alone; biases are 0.

    Args:
        heads: their numbers.
        classes: rows of the second layer.
        units: of the first.
        inputs: entries of a row of the first, with that of the bias.
        init_std: deviation.
        seed: what they are drawn from.
    """
    first = torch.zeros(len(heads), units, inputs)
    second = torch.zeros(len(heads), classes, units + 1)
    first[:, :, :-1] = torch.from_numpy(normals(heads, (units, inputs - 1), seed, 0)) * init_std
    second[:, :, :-1] = torch.from_numpy(normals(heads, (classes, units), seed, 1)) * init_std
    return first, second


def train_two_layers(
    features: torch.Tensor,
    labels: NDArray[np.int64],
    rows: NDArray[np.int32],
    classes: int,
    units: int,
    activation: Activation,
    settings: HeadSettings,
    stream: Stream,
    *,
    point: torch.Tensor | None = None,
    progress: Progress = SILENT,
    kept: Path | None = None,
) -> TwoLayers:
    """Train a head of two layers on each set of images, all at once, by full-batch SGD.

    Args:
        features: ``[images, D + 1]`` as from :func:`fl_sim.reconstruction.shadows.with_ones`.
        labels: ``[N]``, of each column of ``rows``.
        rows: ``[heads, N]``, the sets.
        classes: outputs.
        units: between the layers.
        activation: of the units.
        settings: how heads are trained; ``init_std`` must be larger than a linear head's.
        stream: where initial weights are drawn from.
        point: where tangents are taken; by default the mean of all features.
        progress: where to report.
        kept: folder to keep them in, see :mod:`fl_sim.reconstruction.kept`.

    Raises:
        FlSimError: if heads diverge.
    """
    features = features.float()
    seed = derive_seed(stream.seed, "initial shadow heads", *stream.path)
    target = torch.from_numpy(labels)
    inputs, images = features.shape[1], rows.shape[1]
    point = features[:, :-1].mean(dim=0) if point is None else point

    def made(some: range) -> dict[str, torch.Tensor]:
        own = features[torch.from_numpy(rows[some.start : some.stop]).long()]
        first, second = initial_layers(some, classes, units, inputs, settings.init_std, seed)
        start = torch.bmm(own, first.transpose(1, 2))
        products = torch.bmm(own, own.transpose(1, 2))
        # A layer without biases has none in the second either: the features' last column is 0.
        biases = float(features[:, -1].any())
        found = _descend(products, start, second, target, activation, settings, biases)
        if not all(bool(part.isfinite().all()) for part in found):
            raise FlSimError(
                f"The shadow heads' weights grow without end; lower learning_rate "
                f"({settings.learning_rate:g}) or init_std ({settings.init_std:g})."
            )
        return dict(zip(("first", "second"), found, strict=True))

    place = None
    if kept is not None:
        how = {**settings.model_dump(), "seed": seed, "units": units, "activation": activation}
        place = kept, identity_of("two layers", how, features.numpy(), labels, rows)
    size = chunk_size(inputs, max(images, units), classes)
    shapes = {"first": (images, units), "second": (classes, units + 1)}
    made_of = heads_made(made, shapes, rows, size, progress, place)
    left = (1 - settings.learning_rate * settings.weight_decay) ** settings.epochs
    return TwoLayers(
        features,
        rows,
        made_of["first"],
        made_of["second"],
        left,
        settings.init_std,
        seed,
        activation,
        point,
    )


def _descend(
    products: torch.Tensor,
    start: torch.Tensor,
    second: torch.Tensor,
    target: torch.Tensor,
    activation: Activation,
    settings: HeadSettings,
    biases: float,
) -> Layers:
    """Return coefficients ``[heads, N, units]`` and second layers of trained heads.

    Args:
        products: ``[heads, N, N]``, of features.
        start: ``[heads, N, units]``, units of the initial weights.
        second: ``[heads, classes, units + 1]``, initial.
        target: ``[N]``, classes.
        activation: of the units.
        settings: how.
        biases: 1, or 0 for layers without.
    """
    active = _ACTIVATIONS[activation]

    def loss(units: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        logits = active(units) @ last[:, :-1].T + last[:, -1]
        return torch.nn.functional.cross_entropy(logits, target)

    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))
    keep, rate = 1 - settings.learning_rate * settings.weight_decay, settings.learning_rate
    coefficients, remaining = torch.zeros_like(start), 1.0
    for _ in range(settings.epochs):
        units = torch.baddbmm(start, products, coefficients, beta=remaining)
        by_units, by_second = gradients(units, second)
        by_second[:, :, -1] *= biases
        coefficients = keep * coefficients - rate * by_units
        second = keep * second - rate * by_second
        remaining *= keep
    return coefficients, second
