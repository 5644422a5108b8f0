"""How a head's weights lie in the slots of ciphertexts, and how an answer is read from them.

No cryptography here: what is called a row is what a ciphertext holds, ``slots`` numbers. A layer of
``K`` outputs on ``D`` features comes as ``[K, D + 1]``, its bias last, and features come with a 1
behind them. ``slots`` is a power of two.

- :class:`Products`: weights one output behind the other. Multiplied slot by slot with the features
  repeated, they need no rotations and no keys for these; the owner sums after decrypting. He then
  sees every product, and with his weights the features.
- :class:`Sums`: outputs interleaved, feature by feature. After the product, adding the row to
  itself rotated by ``width``, ``2 width``, ... leaves every output's sum in every ``width``-th
  slot, all around (the "all sums" of Halevi and Shoup, "Algorithms in HElib", CRYPTO 2014).
- :class:`SecondLayer`: what is multiplied with such repeated sums, in a second layer.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError

Rows = NDArray[np.float64]
"""``[ciphertexts, slots]``."""


def _power(number: int) -> int:
    """Return the smallest power of two that is not below a number from 1."""
    return 1 << (number - 1).bit_length()


def _padded(values: NDArray[np.float64], slots: int) -> Rows:
    flat = values.ravel()
    rows = np.zeros(math.ceil(flat.size / slots) * slots)
    rows[: flat.size] = flat
    return rows.reshape(-1, slots)


@dataclass(frozen=True)
class Products:
    """A layer, output by output, in as many rows as it takes.

    Args:
        outputs: ``K``.
        features: ``D + 1``, with that of the bias.
        slots: of a row.
    """

    outputs: int
    features: int
    slots: int

    @property
    def rows(self) -> int:
        """How many rows the layer takes."""
        return math.ceil(self.outputs * self.features / self.slots)

    def weights(self, layer: NDArray[np.float64]) -> Rows:
        """Return the layer ``[outputs, features]`` in rows."""
        return _padded(layer, self.slots)

    def inputs(self, features: NDArray[np.float64]) -> Rows:
        """Return what the weights' rows are multiplied with, of features ``[features]``."""
        return _padded(np.tile(features, self.outputs), self.slots)

    def answer(self, products: Rows) -> NDArray[np.float64]:
        """Return the outputs ``[outputs]`` of decrypted products."""
        values = products.ravel()[: self.outputs * self.features]
        return values.reshape(self.outputs, self.features).sum(axis=1)


@dataclass(frozen=True)
class Sums:
    """A layer, feature by feature, whose rows are multiplied, added, and summed by rotations.

    Args:
        outputs: ``K``; at most ``slots``.
        features: ``D + 1``, with that of the bias.
        slots: of a row.

    Raises:
        FlSimError: if there are more outputs than slots.
    """

    outputs: int
    features: int
    slots: int

    def __post_init__(self) -> None:
        if self.outputs > self.slots:
            raise FlSimError(
                f"The layer has {self.outputs} outputs, and a ciphertext {self.slots} slots; "
                f"raise degree."
            )

    @property
    def width(self) -> int:
        """Slots that a feature takes: one for each output, and more up to a power of two."""
        return _power(self.outputs)

    @property
    def rows(self) -> int:
        """How many rows the layer takes."""
        return math.ceil(self.features * self.width / self.slots)

    @property
    def rotations(self) -> tuple[int, ...]:
        """By how many slots the row is rotated and added to itself, in this order."""
        count = (self.slots // self.width).bit_length() - 1
        return tuple(self.width << step for step in range(count))

    def weights(self, layer: NDArray[np.float64]) -> Rows:
        """Return the layer ``[outputs, features]`` in rows."""
        wide = np.zeros((self.features, self.width))
        wide[:, : self.outputs] = layer.T
        return _padded(wide, self.slots)

    def inputs(self, features: NDArray[np.float64]) -> Rows:
        """Return what the weights' rows are multiplied with, of features ``[features]``."""
        return _padded(np.repeat(features, self.width), self.slots)

    def answer(self, sums: Rows) -> NDArray[np.float64]:
        """Return the outputs ``[outputs]`` of one decrypted row of sums."""
        return sums[0, : self.outputs]


@dataclass(frozen=True)
class SecondLayer:
    """A layer on repeated sums, output by output; the owner sums after decrypting.

    Args:
        outputs: ``K``.
        features: of the hidden layer, with that of the bias; at most ``width``.
        width: after how many slots the sums repeat, see :attr:`Sums.width`.
        slots: of a row.
    """

    outputs: int
    features: int
    width: int
    slots: int

    @property
    def rows(self) -> int:
        """How many rows the layer takes."""
        return math.ceil(self.outputs * self.width / self.slots)

    def weights(self, layer: NDArray[np.float64]) -> Rows:
        """Return the layer ``[outputs, features]`` in rows."""
        wide = np.zeros((self.outputs, self.width))
        wide[:, : self.features] = layer
        return _padded(wide, self.slots)

    def answer(self, products: Rows) -> NDArray[np.float64]:
        """Return the outputs ``[outputs]`` of decrypted products."""
        return products.reshape(-1, self.width).sum(axis=1)[: self.outputs]
