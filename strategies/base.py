"""What a strategy's file registers, and how an aggregator is built from a name and its keys.

Importing this package must stay cheap, so the files below import Flower when they build.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_sim.errors import FlSimError
from fl_sim.faults import blaming
from fl_sim.registry import Registry
from fl_sim.settings import Settings, parse

if TYPE_CHECKING:
    import numpy as np
    from flwr.serverapp.strategy import Strategy
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Aggregator:
    """A Flower strategy with what its defended wrapper has to know about it.

    Args:
        strategy: the strategy.
        name: how results call it.
        min_replies: fewest uploads that it can aggregate.
        server_optimizer: whether it takes a step of its own from the uploads' mean instead of
            staying between them. Statistics of batch normalisation must not take such steps: a
            variance could become negative.
        float64: whether it computes distances between uploads, which differ by little and have
            large norms: in float32 such a difference of squares drowns in rounding.
        summed: whether all that it needs of a round's uploads is their mean, weighted by numbers of
            images. Then no upload is kept: each is added to one sum when it comes. A strategy with
            a ``server_optimizer`` is given the mean as if it were the only upload. Any other gets
            all replies, with arrays that are read from disk when it asks for them.
        each: what is done with an upload before it is summed; ``None`` for nothing.
        disk: bytes that it keeps on disk for each byte of the uploads that it gets.
    """

    strategy: "Strategy"
    name: str = "strategy"
    min_replies: int = 1
    server_optimizer: bool = False
    float64: bool = False
    summed: bool = False
    each: "Callable[[Arrays], Arrays] | None" = None
    disk: float = 1.0


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy's registration.

    Args:
        settings: its keys.
        build: makes the Flower strategy from them.
        min_replies: fewest uploads that it can aggregate, from its keys.
        server_optimizer: see :class:`Aggregator`.
        float64: see :class:`Aggregator`.
        summed: see :class:`Aggregator`; from its keys.
        each: see :class:`Aggregator`; from the strategy as built.
        disk: see :class:`Aggregator`.
    """

    settings: type[Settings]
    build: "Callable[[Any], Strategy]"
    min_replies: Callable[[Any], int] = lambda settings: 1
    server_optimizer: bool = False
    float64: bool = False
    summed: Callable[[Any], bool] = lambda settings: False
    each: "Callable[[Any], Callable[[Arrays], Arrays]] | None" = None
    disk: float = 1.0


def always(settings: Settings) -> bool:
    """Return that uploads are summed whatever the keys are; see :class:`StrategyEntry`."""
    return True


STRATEGIES: Registry[StrategyEntry] = Registry("strategy", "strategies.aggregators")


def check_strategy(
    name: str, values: dict[str, Any], replies: int, where: str = "[aggregator]"
) -> None:
    """Refuse a strategy that cannot work, without importing Flower.

    Args:
        name: a registered strategy.
        values: its keys.
        replies: uploads that it will get in a round, at most: the cohort's size.
        where: how the table is called in messages.

    Raises:
        FlSimError: if there is no such strategy, a key is wrong, or it needs more uploads; or it
            raises anything.
    """
    entry = STRATEGIES.get(name)
    settings = parse(entry.settings, values, where)
    with blaming(f"The strategy '{name}'"):
        needed = entry.min_replies(settings)
    if replies < needed:
        raise too_few(name, needed, replies)


def build_aggregator(
    name: str, values: dict[str, Any] | None = None, where: str = "[aggregator]"
) -> Aggregator:
    """Build a registered strategy.

    Args:
        name: for example ``"fedavg"``.
        values: its keys as read from TOML.
        where: how the table is called in messages.

    Raises:
        FlSimError: if there is no such strategy, a key is wrong, or it cannot be built.
    """
    entry = STRATEGIES.get(name)
    settings = parse(entry.settings, values or {}, where)
    from flwr.serverapp.strategy import Strategy

    with blaming(f"The strategy '{name}'"):
        strategy, needed = entry.build(settings), entry.min_replies(settings)
        if not isinstance(strategy, Strategy):
            raise FlSimError(f"It builds a {type(strategy).__name__}, not a Flower strategy.")
        summed = entry.summed(settings)
        each = None if entry.each is None else entry.each(strategy)
    return Aggregator(
        strategy=strategy,
        name=name,
        min_replies=needed,
        server_optimizer=entry.server_optimizer,
        float64=entry.float64,
        summed=summed,
        each=each,
        disk=entry.disk,
    )


def as_aggregator(strategy: "Strategy") -> Aggregator:
    """Return a strategy that was built elsewhere, with what its class tells about it."""
    from flwr.serverapp import strategy as flower

    adaptive = (flower.FedAdagrad, flower.FedAdam, flower.FedYogi)
    measuring = (flower.Bulyan, flower.Krum, flower.MultiKrum)

    return Aggregator(
        strategy=strategy,
        name=type(strategy).__name__,
        server_optimizer=isinstance(strategy, (*adaptive, flower.FedAvgM, flower.QFedAvg)),
        float64=isinstance(strategy, measuring),
    )


def too_few(name: str, needed: int, replies: int) -> FlSimError:
    """Build the error for a cohort that is too small."""
    return FlSimError(
        f"The strategy '{name}' needs at least {needed} hospitals in a round with these settings, "
        f"and there are {replies}; use more hospitals, a larger cohort, or fewer malicious ones."
    )
