"""Bulyan (El Mhamdi et al. 2018): Multi-Krum's choice, then a trimmed mean, weight by weight."""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class BulyanSettings(Settings):
    """Keys of Bulyan.

    Args:
        num_malicious_nodes: malicious hospitals that it is to withstand.
    """

    num_malicious_nodes: int = Field(0, ge=0)


def build(settings: BulyanSettings) -> "Strategy":
    """Build the strategy."""
    from strategies.blocks import BulyanInBlocks

    return BulyanInBlocks(num_malicious_nodes=settings.num_malicious_nodes)


def replies(settings: BulyanSettings) -> int:
    """Return the fewest uploads for the paper's guarantee, ``4 f + 3``."""
    return 4 * settings.num_malicious_nodes + 3


STRATEGIES.register("bulyan", "Multi-Krum's choice, then a trimmed mean")(
    StrategyEntry(BulyanSettings, build, replies, float64=True, disk=3.0)
)
