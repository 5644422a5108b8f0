"""FedAvgM (Hsu et al. 2019): FedAvg with momentum on the server."""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry, always

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedAvgMSettings(Settings):
    """Keys of FedAvgM.

    Args:
        server_learning_rate: factor on the momentum.
        server_momentum: part of the last momentum that is kept.
    """

    server_learning_rate: float = Field(1.0, gt=0)
    server_momentum: float = Field(0.5, ge=0, lt=1)


def build(settings: FedAvgMSettings) -> "Strategy":
    """Build the strategy."""
    from flwr.serverapp.strategy import FedAvgM

    return FedAvgM(
        server_learning_rate=settings.server_learning_rate,
        server_momentum=settings.server_momentum,
    )


STRATEGIES.register("fedavgm", "FedAvg with momentum on the server")(
    StrategyEntry(FedAvgMSettings, build, server_optimizer=True, summed=always)
)
