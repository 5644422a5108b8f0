"""FedAvg (McMahan et al. 2017): the mean of the uploads, weighted by their numbers of images."""

from typing import TYPE_CHECKING

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry, always

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedAvgSettings(Settings):
    """FedAvg has no keys."""


def build(settings: FedAvgSettings) -> "Strategy":
    """Build the strategy."""
    from flwr.serverapp.strategy import FedAvg

    return FedAvg()


STRATEGIES.register("fedavg", "mean, weighted by numbers of images")(
    StrategyEntry(FedAvgSettings, build, summed=always)
)
