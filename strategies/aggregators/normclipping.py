"""Norm clipping (Sun et al. 2019): no hospital moves the model further than a bound."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from strategies.base import Arrays
    from strategies.clipping import NormClippedFedAvg


class NormClippingSettings(Settings):
    """Keys of norm clipping.

    Args:
        max_norm: L2 norm that an update may have; where not given, ``median_factor`` times the
            median of the round's updates.
        median_factor: see ``max_norm``.
    """

    max_norm: float | None = Field(None, gt=0)
    median_factor: float = Field(1.0, gt=0)


def summed(settings: NormClippingSettings) -> bool:
    """Return whether the bound is known before the uploads have come."""
    return settings.max_norm is not None


def each(strategy: "NormClippedFedAvg") -> "Callable[[Arrays], Arrays]":
    """Return what bounds a single update."""
    return strategy.clipped


def build(settings: NormClippingSettings) -> "Strategy":
    """Build the strategy."""
    from strategies.clipping import NormClippedFedAvg

    return NormClippedFedAvg(settings.max_norm, settings.median_factor)


STRATEGIES.register("normclipping", "FedAvg over updates of bounded norm")(
    StrategyEntry(NormClippingSettings, build, float64=True, summed=summed, each=each)
)
