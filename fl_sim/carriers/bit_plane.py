"""Chosen bits of the mantissa: the higher, the larger a change they stand, and cost.

The lowest bits, for which `lsb` is faster, are lost to any fine-tuning; bits 16 to 18 of late
layers are not.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.elements import ElementCarrier, Values
from fl_sim.carriers.placement import PlacementSettings

_MANTISSA = 23
_SMALLEST = np.float32(2.0**-120)  # normal numbers keep their exponent whatever the mantissa


class BitPlaneSettings(PlacementSettings):
    """Settings of the carrier in chosen bits.

    Args:
        first: lowest bit that carries; 0 is the least significant of a float32's mantissa and 22
            the most significant. Tensors of fewer bits have those from 13 (float16) or 16
            (bfloat16) on.
        bits: how many bits from there carry.
        centred: whether the bits below are set to their middle, so that a change has to be half as
            large as bit ``first`` to turn it.
    """

    first: int = Field(16, ge=0, le=22)
    bits: int = Field(3, ge=1, le=23)
    centred: bool = True

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.first + self.bits > _MANTISSA:
            raise ValueError(
                f"first = {self.first} and bits = {self.bits} reach beyond bit 22, the mantissa's "
                f"highest"
            )
        return self


@CARRIERS.register("bit_plane", "chosen mantissa bits of the weights")
class BitPlane(ElementCarrier[BitPlaneSettings]):
    """Bits ``first`` to ``first + bits - 1``; sign and exponent never change.

    A soft value is how far, in deviations of the tensor, a weight is from where its bit turns.
    """

    Settings = BitPlaneSettings

    @property
    def per_element(self) -> int:
        """See :class:`ElementCarrier`."""
        return self.settings.bits

    @property
    def planes(self) -> Sequence[int]:
        """See :class:`ElementCarrier`."""
        return range(self.settings.first, self.settings.first + self.settings.bits)

    def modulate(
        self, values: Values, bits: NDArray[np.uint8], scale: float, ranks: NDArray[np.int64]
    ) -> Values:
        """See :class:`ElementCarrier`."""
        first, count = self.settings.first, self.settings.bits
        legible = np.where(np.abs(values) < _SMALLEST, _SMALLEST, values).astype(np.float32)
        words = legible.view(np.uint32)
        powers = np.uint32(1) << np.arange(first, first + count, dtype=np.uint32)
        content = (bits.astype(np.uint32) * powers).sum(axis=1, dtype=np.uint32)
        words = words & ~np.uint32(powers.sum()) | content
        if self.settings.centred and first:
            below = np.uint32(2**first - 1)
            words = words & ~below | np.uint32(2 ** (first - 1))
        return words.astype(np.uint32).view(np.float32)

    def demodulate(self, values: Values, scale: float, ranks: NDArray[np.int64]) -> Values:
        """See :class:`ElementCarrier`."""
        words = np.ascontiguousarray(values, np.float32).view(np.uint32)
        unit = np.exp2(np.floor(np.log2(np.maximum(np.abs(values), _SMALLEST)))) / scale
        soft = np.empty((len(values), self.settings.bits), np.float32)
        for place in range(self.settings.bits):
            plane = self.settings.first + place
            step = 2.0**plane
            below = (words & np.uint32(2**plane - 1)).astype(np.float64) + 0.5
            distance = np.minimum(below, step - below) / 2.0**_MANTISSA * unit
            sign = (words >> np.uint32(plane) & np.uint32(1)).astype(np.float64) * 2 - 1
            soft[:, place] = sign * np.maximum(distance, 1e-30)
        return soft
