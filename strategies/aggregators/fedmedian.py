"""FedMedian (Yin et al. 2018): the median of the uploads, weight by weight, all counting alike."""

from typing import TYPE_CHECKING

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedMedianSettings(Settings):
    """FedMedian has no keys."""


def build(settings: FedMedianSettings) -> "Strategy":
    """Build the strategy."""
    from strategies.blocks import MedianInBlocks

    return MedianInBlocks()


STRATEGIES.register("fedmedian", "median, weight by weight")(
    StrategyEntry(FedMedianSettings, build)
)
