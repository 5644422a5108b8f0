"""What a Flower strategy carries from round to round, as named arrays (no pickle).

Every attribute that holds an array, a list of arrays or a dictionary of arrays is taken: FedAdam's
``m_t`` and ``v_t``, FedAvgM's ``momentum_vector``, and those of strategies not known here. An
array is named ``<depth>/<attribute>/<kind>/<key>``; the depth counts strategies wrapped around
others.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl_sim.errors import FlSimError

Arrays = dict[str, NDArray[np.generic]]
_REBUILT = {"current_arrays"}  # the last broadcast, set anew in every round


def strategy_chain(strategy: Strategy) -> Iterator[Any]:
    """Yield a strategy and those that it wraps, as Flower's privacy wrappers do."""
    inner: Any = strategy
    while isinstance(inner, Strategy):
        yield inner
        inner = getattr(inner, "strategy", None)


def forget_broadcast(strategy: Strategy) -> None:
    """Let a strategy take the next broadcast for what it steps from.

    FedAvgM would go on from its own aggregate, which the defence has since changed.
    """
    for member in strategy_chain(strategy):
        if hasattr(member, "current_arrays"):
            member.current_arrays = None


def server_state(strategy: Strategy) -> Arrays:
    """Return copies of the strategy's arrays; see the module's docstring for their names."""
    arrays: Arrays = {}
    for depth, member in enumerate(strategy_chain(strategy)):
        for attribute, value in vars(member).items():
            if attribute not in _REBUILT:
                for key, array in _entries(value):
                    arrays[f"{depth}/{attribute}/{key}"] = np.array(array)
    return arrays


def load_server_state(strategy: Strategy, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Put back what :func:`server_state` returned.

    Raises:
        FlSimError: if the strategy has no such attribute.
    """
    members = list(strategy_chain(strategy))
    groups: dict[tuple[int, str, str], Arrays] = {}
    for name, array in arrays.items():
        depth, attribute, kind, key = name.split("/", 3)
        groups.setdefault((int(depth), attribute, kind), {})[key] = np.array(array)
    for (level, attribute, kind), entries in groups.items():
        if level >= len(members) or not hasattr(members[level], attribute):
            raise FlSimError(
                f"The saved server state has '{attribute}', which the strategy "
                f"{type(strategy).__name__} does not; it was saved with another strategy."
            )
        setattr(members[level], attribute, _restored(kind, entries))


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.ndarray):
        yield "array/", value
    elif isinstance(value, list) and value and all(isinstance(v, _ARRAY) for v in value):
        yield from ((f"list/{position:06d}", array) for position, array in enumerate(value))
    elif isinstance(value, dict) and value and all(isinstance(v, _ARRAY) for v in value.values()):
        yield from ((f"dict/{key}", array) for key, array in value.items())


def _restored(kind: str, entries: Arrays) -> Any:
    if kind == "array":
        return entries[""]
    if kind == "list":
        return [entries[key] for key in sorted(entries)]
    return entries


# Arithmetic turns zero-dimensional arrays into NumPy scalars.
_ARRAY = (np.ndarray, np.generic)
