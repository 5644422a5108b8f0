"""FedProx (Li et al. 2020): FedAvg whose hospitals are held back near the broadcast.

The server only sends the penalty's weight; the hospital adds ``mu / 2 * ||w - w_global||^2`` to
its loss, see :class:`fl_sim.training.Proximal`.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry, always

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedProxSettings(Settings):
    """Keys of FedProx.

    Args:
        proximal_mu: weight of the penalty.
    """

    proximal_mu: float = Field(0.1, ge=0)


def build(settings: FedProxSettings) -> "Strategy":
    """Build the strategy."""
    from flwr.serverapp.strategy import FedProx

    return FedProx(proximal_mu=settings.proximal_mu)


STRATEGIES.register("fedprox", "FedAvg with a penalty on leaving the broadcast")(
    StrategyEntry(FedProxSettings, build, summed=always)
)
