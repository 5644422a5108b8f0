"""One bit in the sign of each weight, which only a change as large as the weight can turn."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.elements import ElementCarrier, Values
from fl_sim.carriers.placement import PlacementSettings


class SignSettings(PlacementSettings):
    """Settings of the carrier in signs.

    Args:
        floor: smallest size of a weight that carries, in deviations of a fresh weight of that
            tensor (He et al. 2015). Smaller ones, of which a slight change turns the sign, are
            raised to it. In dead weights it costs nothing, and a hospital that wants its signs to
            outvote an average of others that do not move them needs ``(1 - p) / p`` times their
            largest size, where ``p`` is its share.
    """

    floor: float = Field(0.2, gt=0, allow_inf_nan=False)


@CARRIERS.register("sign", "the signs of the weights")
class Sign(ElementCarrier[SignSettings]):
    """Bit 1 makes a weight positive, 0 negative; its size stays, but for the floor."""

    Settings = SignSettings

    def modulate(
        self, values: Values, bits: NDArray[np.uint8], scale: float, ranks: NDArray[np.int64]
    ) -> Values:
        """See :class:`ElementCarrier`."""
        sizes = np.maximum(np.abs(values), np.float32(self.settings.floor * scale))
        return np.where(bits[:, 0] == 1, sizes, -sizes)

    def demodulate(self, values: Values, scale: float, ranks: NDArray[np.int64]) -> Values:
        """See :class:`ElementCarrier`."""
        return np.clip(values[:, None] / np.float32(scale), -8, 8)
