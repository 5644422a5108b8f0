"""Many heads, formed chunk by chunk, of which an attacker learns the way back to their images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

_ENTRIES = 2**22
"""Numbers in a chunk of heads, so that memory does not grow with how many heads there are."""


class Population(ABC):
    """Heads that are kept as what they follow from; their weights are formed when asked for."""

    @property
    @abstractmethod
    def rows(self) -> NDArray[np.int32]:
        """Which images each head was trained on, class by class, ``[heads, N]``."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Rows of a head."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Entries of a row: features, and 1 for the bias."""

    @abstractmethod
    def weights(self, first: int, last: int) -> torch.Tensor:
        """Return the weights of the heads ``first`` to ``last - 1``.

        Returns:
            ``[heads, classes, inputs]``, the bias last.
        """

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(
        self, first: int = 0, last: int | None = None, size: int | None = None
    ) -> Iterator[tuple[NDArray[np.int32], torch.Tensor]]:
        """Go through heads chunk by chunk.

        Args:
            first, last: which heads; by default all.
            size: heads in a chunk; by default as many as have some million numbers.

        Yields:
            Rows ``[heads, N]`` and weights ``[heads, classes, inputs]``.
        """
        last = len(self) if last is None else last
        rows = self.rows
        size = size or chunk_size(self.inputs, rows.shape[1], self.classes)
        for start in range(first, last, size):
            stop = min(start + size, last)
            yield rows[start:stop], self.weights(start, stop)


def chunk_size(inputs: int, images: int, classes: int) -> int:
    """Return how many heads are worked on at once, at least 1.

    Args:
        inputs: features of an image.
        images: in a set.
        classes: rows of a head.
    """
    return max(1, _ENTRIES // (max(images, classes) * inputs + images * images))
