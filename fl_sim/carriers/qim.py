"""Quantisation index modulation: a weight moves to the nearest point of one of two lattices.

Chen and Wornell, "Quantization Index Modulation" (IEEE Trans. Inf. Theory 47(4), 2001), with a
keyed dither, which hides the lattices from who does not know the seed.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.elements import ElementCarrier, Values
from fl_sim.carriers.placement import PlacementSettings
from fl_sim.randomness import derive_seed


class QimSettings(PlacementSettings):
    """Settings of quantisation index modulation.

    Args:
        step: distance of a lattice's points, in deviations of a fresh weight of that tensor (He et
            al. 2015). A weight changes by at most half of it; a quarter turns the bit.
        dither: whether each element's lattices are shifted by a secret amount.
    """

    step: float = Field(0.2, gt=0, allow_inf_nan=False)
    dither: bool = True


@CARRIERS.register("qim", "quantisation index modulation of the weights")
class Qim(ElementCarrier[QimSettings]):
    """Bit 0 is on the points ``step * k + dither``, bit 1 half a step beside them.

    A soft value is how much nearer the one lattice is than the other, in deviations.
    """

    Settings = QimSettings

    def modulate(
        self, values: Values, bits: NDArray[np.uint8], scale: float, ranks: NDArray[np.int64]
    ) -> Values:
        """See :class:`ElementCarrier`."""
        step = self.settings.step * scale
        shift = (self._dither(ranks) + 0.5 * bits[:, 0]) * step
        return (np.round((values - shift) / step) * step + shift).astype(np.float32)

    def demodulate(self, values: Values, scale: float, ranks: NDArray[np.int64]) -> Values:
        """See :class:`ElementCarrier`."""
        phase = values.astype(np.float64) / (self.settings.step * scale) - self._dither(ranks)
        # 0 on the lattice of bit 0, 0.5 on that of bit 1.
        off = np.abs(phase - np.round(phase))
        soft = (off - 0.25) * self.settings.step
        return np.where(soft == 0, 1e-30, soft).astype(np.float32)[:, None]

    def _dither(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the shift of each rank in steps, 0 to 1; any rank's can be had alone."""
        if not self.settings.dither:
            return np.zeros(len(ranks))
        key = np.uint64(derive_seed(self.seed, "qim dither"))
        return (mixed(ranks.astype(np.uint64) ^ key) >> np.uint64(11)) / 2.0**53


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that look random, each a function of its own (SplitMix64's last step)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ x >> np.uint64(31), np.uint64)
