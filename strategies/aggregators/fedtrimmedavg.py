"""FedTrimmedAvg (Yin et al. 2018): the mean, weight by weight, without the extreme uploads."""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class FedTrimmedAvgSettings(Settings):
    """Keys of FedTrimmedAvg.

    Args:
        beta: fraction of uploads left out at either end, rounded down to whole uploads: with 4
            hospitals and 0.2 nothing is.
    """

    beta: float = Field(0.2, ge=0, lt=0.5)


def build(settings: FedTrimmedAvgSettings) -> "Strategy":
    """Build the strategy."""
    from strategies.blocks import TrimmedMeanInBlocks

    return TrimmedMeanInBlocks(beta=settings.beta)


STRATEGIES.register("fedtrimmedavg", "mean, weight by weight, without the extremes")(
    StrategyEntry(FedTrimmedAvgSettings, build)
)
