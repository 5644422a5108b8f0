"""LWLRD without decay: its mean rate everywhere; a control for :mod:`fl_sim.defenses.lwlrd`."""

import math

from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.lwlrd import Lwlrd


@DEFENSES.register("lwlrd_uniform", "LWLRD's geometric mean rate in every layer (control)")
class UniformLwlrd(Lwlrd):
    """Fine-tune with the geometric mean of ``high`` and ``low``, that of LWLRD's own rates."""

    def rates(self, count: int) -> list[float]:
        """Return the learning rates of ``count`` layers, the first one's first."""
        return [math.sqrt(self.settings.high * self.settings.low)] * count
