"""Shadow heads: many linear heads trained at once, each on a small set of frozen features."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream, derive_seed
from fl_sim.sealing.heads import HeadSettings

_ENTRIES = 2**22
"""Numbers in a chunk of heads, so that memory does not grow with how many heads there are."""


@dataclass(frozen=True)
class Shadows:
    """Trained heads, kept as what they were trained on: their weights are formed when asked for.

    Full-batch gradient descent adds a combination of its N images' features to the initial weights
    in each step, so that a head is ``remaining * initial + coefficients^T features``.

    Args:
        features: ``[images, D + 1]``, the last column what the bias is multiplied with.
        rows: ``[heads, N]``, which images each head was trained on.
        coefficients: ``[heads, N, classes]``.
        remaining: share of the initial weights that weight decay has left, in [0, 1].
        init_std: deviation of the initial weights.
        seed: what they are drawn from.
    """

    features: torch.Tensor
    rows: NDArray[np.int32]
    coefficients: torch.Tensor
    remaining: float
    init_std: float
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        """Rows of a head."""
        return self.coefficients.shape[2]

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
        return found.add_(self.initial(first, last), alpha=self.remaining)

    def chunks(
        self, first: int = 0, last: int | None = None, size: int | None = None
    ) -> Iterator[tuple[NDArray[np.int32], torch.Tensor]]:
        """Go through heads chunk by chunk.

        Args:
            first, last: which heads; by default all.
            size: heads in a chunk; by default as many as have some million numbers.

        Yields:
            Rows ``[heads, N]`` and weights ``[heads, classes, D + 1]``.
        """
        last = len(self) if last is None else last
        size = size or chunk_size(self.features.shape[1], self.rows.shape[1], self.classes)
        for start in range(first, last, size):
            stop = min(start + size, last)
            yield self.rows[start:stop], self.weights(start, stop)


def chunk_size(inputs: int, images: int, classes: int) -> int:
    """Return how many heads are worked on at once, at least 1.

    Args:
        inputs: features of an image.
        images: in a set.
        classes: rows of a head.
    """
    return max(1, _ENTRIES // (max(images, classes) * inputs + images * images))


def with_ones(features: torch.Tensor, bias: bool = True) -> torch.Tensor:
    """Return features ``[images, D + 1]``, the last column 1, or 0 for heads without bias."""
    return torch.cat([features, torch.full_like(features[:, :1], float(bias))], dim=1)


def initial_heads(
    heads: range, classes: int, features: torch.Tensor, init_std: float, seed: int
) -> torch.Tensor:
    """Return the initial weights of heads, each by its number alone, ``[heads, classes, D + 1]``.

    Args:
        heads: their numbers.
        classes: rows of a head.
        features: ``[images, D + 1]``, which says how wide and of what type.
        init_std: deviation; biases are 0.
        seed: what they are drawn from.
    """
    inputs = features.shape[1] - 1
    drawn = np.zeros((len(heads), classes, inputs + 1), dtype=np.float32)
    for place, head in enumerate(heads):
        # A counter a head: any one can be drawn without those before it.
        philox = np.random.Philox(key=seed, counter=[0, head, 0, 0])
        drawn[place, :, :-1] = np.random.Generator(philox).standard_normal(
            (classes, inputs), dtype=np.float32
        )
    return torch.from_numpy(drawn).to(features.dtype).mul_(init_std)


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

    Raises:
        FlSimError: if heads diverge.
    """
    heads, images = rows.shape
    remaining = 1 - settings.learning_rate * settings.weight_decay
    if abs(remaining) > 1:
        raise _diverged(settings)
    seed = derive_seed(stream.seed, "initial shadow heads", *stream.path)
    target = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).to(features.dtype)
    size = size or chunk_size(features.shape[1], images, classes)
    coefficients = torch.empty(heads, images, classes, dtype=features.dtype)
    with piece(progress, "shadow heads", heads):
        for start in range(0, heads, size):
            some = range(start, min(start + size, heads))
            own = features[torch.from_numpy(rows[some.start : some.stop]).long()]
            initial = initial_heads(some, classes, features, settings.init_std, seed)
            logits = torch.bmm(own, initial.transpose(1, 2))
            products = torch.bmm(own, own.transpose(1, 2))
            coefficients[some.start : some.stop] = _descend(products, logits, target, settings)
            progress.step(advance=len(some))
    if not coefficients.isfinite().all():
        raise _diverged(settings)
    left = remaining**settings.epochs
    return Shadows(features, rows, coefficients, left, settings.init_std, seed)


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
