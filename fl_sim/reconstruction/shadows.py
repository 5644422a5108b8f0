"""Shadow heads: many linear heads trained at once, each on a small set of frozen features."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, derive_seed
from fl_sim.reconstruction.draws import initial_heads, noise_of_heads
from fl_sim.reconstruction.kept import heads_made, identity_of
from fl_sim.reconstruction.population import Population, chunk_size
from fl_sim.reconstruction.private import (
    Private,
    descend_privately,
    noise_left,
)
from fl_sim.sealing.heads import HeadSettings

_NOISE = 2**24
"""Numbers of noise that are drawn at once."""


class Coefficients(Protocol):
    """Coefficients of many heads, ``[heads, N, classes]``: in memory, or blocks on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(heads, N, classes)``."""

    def __getitem__(self, heads: slice, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class Shadows(Population):
    """Trained heads, kept as what they were trained on: their weights are formed when asked for.

    Full-batch gradient descent adds a combination of its N images' features to the initial weights
    in each step, so that a head is ``remaining * initial + coefficients^T features``.

    Args:
        features: ``[images, D + 1]``, the last column what the bias is multiplied with.
        sets: ``[heads, N]``, which images each head was trained on.
        coefficients: ``[heads, N, classes]``.
        remaining: share of the initial weights that weight decay has left, in [0, 1].
        init_std: deviation of the initial weights.
        seed: what they are drawn from.
        noise: deviation of the noise that private training has left outside the images' span.
    """

    features: torch.Tensor
    sets: NDArray[np.int32]
    coefficients: Coefficients
    remaining: float
    init_std: float
    seed: int
    noise: float = 0.0

    @property
    def rows(self) -> NDArray[np.int32]:
        """Which images each head was trained on, ``[heads, N]``."""
        return self.sets

    @property
    def classes(self) -> int:
        """Rows of a head."""
        return self.coefficients.shape[2]

    @property
    def inputs(self) -> int:
        """Entries of a row."""
        return self.features.shape[1]

    def initial(self, first: int, last: int) -> torch.Tensor:
        """Return the initial weights of some heads, ``[heads, classes, D + 1]``; biases are 0."""
        return initial_heads(
            range(first, last), self.classes, self.features, self.init_std, self.seed
        )

    def weights(self, first: int, last: int) -> torch.Tensor:
        """Return the weights of the heads ``first`` to ``last - 1``.

        Returns:
            ``[heads, classes, D + 1]``, the bias last.
        """
        found = torch.bmm(
            self.coefficients[first:last].transpose(1, 2),
            self.features[torch.from_numpy(self.rows[first:last]).long()],
        )
        found.add_(self.initial(first, last), alpha=self.remaining)
        if self.noise > 0:
            drawn = noise_of_heads(range(first, last), self.classes, self.features, self.seed)
            found.add_(drawn, alpha=self.noise)
        return found


def with_ones(features: torch.Tensor, bias: bool = True) -> torch.Tensor:
    """Return features ``[images, D + 1]``, the last column 1, or 0 for heads without bias."""
    return torch.cat([features, torch.full_like(features[:, :1], float(bias))], dim=1)


def train_shadows(
    features: torch.Tensor,
    labels: NDArray[np.int64],
    rows: NDArray[np.int32],
    classes: int,
    settings: HeadSettings,
    stream: Stream,
    *,
    size: int | None = None,
    progress: Progress = SILENT,
    private: Private | None = None,
    kept: Path | None = None,
) -> Shadows:
    """Train a head on each set of images, all at once, exactly as :func:`train_head` trains one.

    Each step of full-batch gradient descent on cross entropy stays in the span of a set's own N
    features, so coefficients of N x classes are trained by way of N x N products of features, which
    costs the same for features of any width. In the features' type: float32 as torch would.

    Args:
        features: ``[images, D + 1]`` as from :func:`with_ones`.
        labels: ``[N]``, of each column of ``rows``, in 0 to ``classes - 1``.
        rows: ``[heads, N]``, the sets.
        classes: rows of a head.
        settings: how heads are trained.
        stream: where initial weights are drawn from.
        size: heads in a chunk, which changes no head; by default as many as have some million
            numbers.
        progress: where to report.
        private: clipping and noise, where heads are trained privately; see
            :mod:`fl_sim.reconstruction.private`.
        kept: folder that coefficients are kept in, for another time; see
            :mod:`fl_sim.reconstruction.kept`. ``None`` for memory.

    Raises:
        FlSimError: if heads diverge.
    """
    images = rows.shape[1]
    remaining = 1 - settings.learning_rate * settings.weight_decay
    if abs(remaining) > 1:
        raise _diverged(settings)
    seed = derive_seed(stream.seed, "initial shadow heads", *stream.path)
    target = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).to(features.dtype)

    def made(some: range) -> dict[str, torch.Tensor]:
        own = features[torch.from_numpy(rows[some.start : some.stop]).long()]
        initial = initial_heads(some, classes, features, settings.init_std, seed)
        if private is None:
            logits = torch.bmm(own, initial.transpose(1, 2))
            products = torch.bmm(own, own.transpose(1, 2))
            found = _descend(products, logits, target, settings)
        else:
            noise = noise_of_heads(some, classes, features, seed)
            found = descend_privately(own, initial, target, settings, private, noise, some, seed)
        if not found.isfinite().all():
            raise _diverged(settings)
        return {"coefficients": found}

    size = size or chunk_size(features.shape[1], images, classes)
    if private is not None:  # all steps' noise of a chunk is drawn at once
        size = min(size, max(1, _NOISE // (settings.epochs * images * classes)))
    place = None
    if kept is not None:
        how = {**settings.model_dump(), "seed": seed, "private": private and asdict(private)}
        place = kept, identity_of("linear", how, features.numpy(), labels, rows)
    shapes = {"coefficients": (images, classes)}
    coefficients = heads_made(made, shapes, rows, size, progress, place)["coefficients"]
    left = remaining**settings.epochs
    outside = 0.0 if private is None else noise_left(settings, private, images)
    return Shadows(features, rows, coefficients, left, settings.init_std, seed, outside)


def _diverged(settings: HeadSettings) -> FlSimError:
    return FlSimError(
        f"The shadow heads' weights grow without end; lower learning_rate "
        f"({settings.learning_rate:g}) or weight_decay ({settings.weight_decay:g})."
    )


def _descend(
    products: torch.Tensor, initial: torch.Tensor, target: torch.Tensor, settings: HeadSettings
) -> torch.Tensor:
    """Return coefficients ``[heads, N, classes]``.

    Args:
        products: ``[heads, N, N]``, of features.
        initial: ``[heads, N, classes]``, logits of the initial weights.
        target: ``[N, classes]``, one-hot.
        settings: how.
    """
    keep = 1 - settings.learning_rate * settings.weight_decay
    rate = settings.learning_rate / len(target)
    coefficients = torch.zeros_like(initial)
    remaining = 1.0
    for _ in range(settings.epochs):
        logits = torch.baddbmm(initial, products, coefficients, beta=remaining)
        wrong = torch.softmax(logits, dim=2).sub_(target)
        coefficients.mul_(keep).sub_(wrong, alpha=rate)
        remaining *= keep
    return coefficients
