"""The entries of a state dictionary that a Flower strategy must not aggregate as it would."""

from collections.abc import Callable, Collection, Mapping

import torch
from flwr.app import ArrayRecord

from fl_sim.engine.spill import widened
from fl_sim.errors import FlSimError
from fl_sim.models.entries import cast_like, entry_problem


def for_strategy(
    arrays: ArrayRecord, integers: Collection[str], *, float64: bool, skip: Collection[str]
) -> ArrayRecord:
    """Return what an inner strategy gets: floats, and integers as float64.

    Args:
        arrays: a whole state, serialised; what is widened is so when it is read.
        integers: its entries that are not floating point.
        float64: whether floats are widened, too.
        skip: entries that it does not get.
    """
    record = ArrayRecord()
    for name, array in arrays.items():
        if name in skip:
            continue
        record[name] = widened(array) if float64 or name in integers else array
    return record


def settled(
    name: str, value: torch.Tensor, reference: torch.Tensor, server_round: int, strategy: str
) -> torch.Tensor:
    """Return an aggregate's entry with the shape and dtype that it was broadcast with.

    Args:
        name: the entry's.
        value: what the uploads were made into.
        reference: the entry as broadcast.
        server_round: in which.
        strategy: the name of what made it.

    Raises:
        FlSimError: if it has values that no such entry can have.
    """
    entry = cast_like(value, reference)
    problem = entry_problem(name, entry, reference)
    if problem:
        raise FlSimError(
            f"Round {server_round}: the aggregate's {problem}; lower the learning rates of the "
            f"hospitals or of the strategy '{strategy}'."
        )
    return entry


def weighted_mean(
    values: Callable[[int], torch.Tensor], weights: Mapping[int, float]
) -> torch.Tensor:
    """Return ``sum(weight * value) / sum(weights)`` over hospitals, in float64 and their order.

    Args:
        values: gives a hospital's value.
        weights: by hospital.
    """
    total = sum(weights.values())
    mean = torch.zeros((), dtype=torch.float64)
    for hospital in sorted(weights):
        mean = mean + values(hospital).double() * (weights[hospital] / total)
    return mean
