"""LWLRD turned around: late layers are moved most; a control for :mod:`fl_sim.defenses.lwlrd`."""

from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.lwlrd import Lwlrd, decayed_rates


@DEFENSES.register("lwlrd_reversed", "LWLRD with the high rate in the last layer (control)")
class ReversedLwlrd(Lwlrd):
    """Fine-tune with rates that grow geometrically from ``low`` in the first layer to ``high``."""

    def rates(self, count: int) -> list[float]:
        """Return the learning rates of ``count`` layers, the first one's first."""
        return decayed_rates(self.settings.high, self.settings.low, count)[::-1]
