"""A strategy that somebody built in Python, as part of a scenario: results tell it from others."""

import hashlib
import math
from typing import Any

from flwr.serverapp.strategy import Strategy

from experiments.run.scenario import Scenario
from fl_sim.component import Component
from fl_sim.errors import FlSimError, shown
from strategies.any_app import Defended
from strategies.inner import SAMPLING
from strategies.server_state import server_state, strategy_chain


def with_strategy(scenario: Scenario, strategy: Any) -> Scenario:
    """Return a federated scenario whose strategy is this one, by its class's name.

    What the scenario's identity is made of is the strategy's class, its attributes that are
    numbers, texts or truth values, those of strategies that it wraps, and arrays that it has
    gathered already; so another strategy does not continue its run. Code is not compared.

    Raises:
        FlSimError: if it is no strategy, has a defence of its own, or the scenario is centralized.
    """
    if scenario.federation is None:
        raise FlSimError('A strategy is for a federation; set mode = "federated".')
    if not isinstance(strategy, Strategy):
        built = f", for example {strategy.__name__}()" if isinstance(strategy, type) else ""
        raise FlSimError(
            f"The strategy is {shown(strategy)}; give an object of a Flower strategy{built}."
        )
    if any(isinstance(member, Defended) for member in strategy_chain(strategy)):
        raise FlSimError(
            "A scenario has a [defense] of its own; give the strategy without Defended around it."
        )
    choice = Component(name=type(strategy).__name__, settings=_told(strategy))
    federation = scenario.federation.model_copy(update={"strategy": choice})
    return scenario.model_copy(update={"federation": federation})


def _told(strategy: Strategy) -> dict[str, Any]:
    """Return what tells a strategy from others, as JSON holds it."""
    told: dict[str, Any] = {}
    for depth, member in enumerate(strategy_chain(strategy)):
        kind = type(member)
        told[f"{depth}/class"] = f"{kind.__module__}.{kind.__qualname__}"
        for name, value in sorted(vars(member).items()):
            if name not in SAMPLING and isinstance(value, bool | int | float | str):
                finite = not isinstance(value, float) or math.isfinite(value)
                told[f"{depth}/{name}"] = value if finite else repr(value)
    arrays = server_state(strategy)
    if arrays:
        digest = hashlib.sha256()
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        told["arrays"] = digest.hexdigest()
    return told
