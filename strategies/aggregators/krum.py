"""Krum and Multi-Krum (Blanchard et al. 2017): the uploads that lie nearest to the others.

The paper's guarantee needs ``n >= 2 f + 3`` uploads for ``f`` malicious hospitals.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy


class KrumSettings(Settings):
    """Keys of Krum.

    Args:
        num_malicious_nodes: malicious hospitals that it is to withstand.
    """

    num_malicious_nodes: int = Field(0, ge=0)


class MultiKrumSettings(KrumSettings):
    """Keys of Multi-Krum.

    Args:
        num_malicious_nodes: malicious hospitals that it is to withstand.
        num_nodes_to_select: uploads that are averaged.
    """

    num_nodes_to_select: int = Field(2, ge=1)


def build_krum(settings: KrumSettings) -> "Strategy":
    """Build Krum."""
    from strategies.selecting import SelectingKrum

    return SelectingKrum(num_malicious_nodes=settings.num_malicious_nodes)


def build_multikrum(settings: MultiKrumSettings) -> "Strategy":
    """Build Multi-Krum."""
    from strategies.selecting import SelectingMultiKrum

    return SelectingMultiKrum(
        num_malicious_nodes=settings.num_malicious_nodes,
        num_nodes_to_select=settings.num_nodes_to_select,
    )


def krum_replies(settings: KrumSettings) -> int:
    """Return the fewest uploads for the paper's guarantee."""
    return 2 * settings.num_malicious_nodes + 3


def multikrum_replies(settings: MultiKrumSettings) -> int:
    """Return the fewest uploads for the guarantee, and so that no malicious one must be chosen."""
    return max(krum_replies(settings), settings.num_nodes_to_select + settings.num_malicious_nodes)


STRATEGIES.register("krum", "the upload nearest to the others")(
    StrategyEntry(KrumSettings, build_krum, krum_replies, float64=True, disk=3.0)
)
STRATEGIES.register("multikrum", "mean of the uploads nearest to the others")(
    StrategyEntry(MultiKrumSettings, build_multikrum, multikrum_replies, float64=True, disk=3.0)
)
