"""Places that a permutation of hidden channels does not move: the channels sorted, then numbered.

The attacker's answer to channel permutation as a defence; sorting by a norm, bias or variance is
named in the NeuPerm project's own files. Sender and receiver both sort each group of channels that
could change places by a vector of the network itself: the bias of a normalisation, which neither a
permutation nor a rescaling of channels changes. The model stays in the order that it has; only the
carrier sees it sorted.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.carriers.base import Carrier, Payload, State
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.models.channels import (
    ChannelGroup,
    ChannelSlice,
    Indices,
    channel_groups,
    permuted,
)
from fl_sim.models.graph import NORMALIZATIONS

# By a float's size in bytes: the integer of its size, and which of its bits is the sign.
_INTEGERS = {4: (torch.int32, 31), 2: (torch.int16, 15)}


@dataclass(frozen=True)
class SortedGroup:
    """A group of channels with the vector that it is sorted by, which must carry nothing."""

    group: ChannelGroup
    key: ChannelSlice


def sorted_groups(spec: ModelSpec) -> tuple[SortedGroup, ...]:
    """Return the groups of channels that a network has a vector to sort by, in forward order."""
    return _sorted_groups(spec.model_dump_json())


@lru_cache(maxsize=8)
def _sorted_groups(spec_json: str) -> tuple[SortedGroup, ...]:
    spec = ModelSpec.model_validate_json(spec_json)
    model = build(spec)
    state, found = model.state_dict(), []
    for group in channel_groups(model, spec.input_shape):
        vectors = [part for part in group.slices if _is_vector(state[part.tensor], part)]
        keys = [(_rank(model, part), part) for part in vectors]
        if keys:
            found.append(SortedGroup(group, min(keys, key=lambda ranked: ranked[0])[1]))
    return tuple(found)


def _is_vector(tensor: torch.Tensor, part: ChannelSlice) -> bool:
    return tensor.dim() == 1 and tensor.is_floating_point() and len(part.positions) == 1


def _rank(model: nn.Module, part: ChannelSlice) -> int:
    """Rank vectors to sort by: those first that fine-tuning and rescaling move least."""
    owner, _, name = part.tensor.rpartition(".")
    if name.startswith("running"):
        return 3
    if not isinstance(model.get_submodule(owner), NORMALIZATIONS):
        return 2
    return 0 if name == "bias" else 1


class Canonical(Carrier[Any]):
    """A carrier that finds its places in the sorted model.

    Args:
        inner: the carrier; it must leave the vectors of :func:`sorted_groups` alone.
        spec: the network.
    """

    def __init__(self, inner: Carrier[Any], spec: ModelSpec) -> None:
        super().__init__(inner.settings, inner.seed, spec)
        self._inner = inner
        self._groups = sorted_groups(spec)

    def capacity(self, state: State) -> int | None:
        """Return the inner carrier's; see :meth:`Carrier.capacity`."""
        return self._inner.capacity(state)

    def write(self, state: State, payload: Payload) -> State:
        """Write a payload; channels whose vector has ties are told apart by the next numbers."""
        apart = _without_ties(state, self._groups)
        orders = self._orders(apart)
        written = self._inner.write(self._arranged(apart, orders), payload)
        return self._arranged(written, _inverse(orders))

    def read(self, state: State, count: int | None = None, like: State | None = None) -> Payload:
        """Read a payload; see :meth:`Carrier.read`."""
        return self._inner.read(self._sorted(state), count, like)

    def read_soft(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Read bytes with how sure each bit is; see :meth:`Carrier.read_soft`."""
        return self._inner.read_soft(self._sorted(state), count, like)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements are used, where the state has them."""
        orders = self._orders(state)
        masks = self._inner.places(self._arranged(state, orders), count)
        return self._arranged(masks, _inverse(orders))

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return how wrong a payload's places became; see :meth:`Carrier.errors`."""
        return self._inner.errors(self._sorted(sent), self._sorted(arrived), length)

    def plane_errors(self, sent: State, arrived: State, length: int) -> dict[str, dict[int, float]]:
        """Return how wrong each bit of a weight became; see :meth:`Carrier.plane_errors`."""
        return self._inner.plane_errors(self._sorted(sent), self._sorted(arrived), length)

    def _sorted(self, state: State) -> State:
        return self._arranged(state, self._orders(state))

    def _orders(self, state: State) -> list[Indices]:
        """Return each group's channels by their vector; as they are where it is missing."""
        orders = []
        for one in self._groups:
            key = _key(state, one)
            kept = np.arange(one.group.channels)
            orders.append(kept if key is None else key.argsort(stable=True).numpy())
        return orders

    def _arranged(self, state: State, orders: list[Indices]) -> State:
        """Return a state with the channels of each group in another order."""
        return permuted(state, [one.group for one in self._groups], orders)


def _inverse(orders: list[Indices]) -> list[Indices]:
    return [np.argsort(order) for order in orders]


def _key(state: State, one: SortedGroup) -> torch.Tensor | None:
    """Return the vector that a group is sorted by, as integers in the order of its numbers."""
    if not one.key.fits(state) or state[one.key.tensor].dim() != 1:
        return None
    values = state[one.key.tensor].detach().cpu()[torch.from_numpy(one.key.positions[0])]
    if values.dtype.itemsize not in _INTEGERS or not bool(values.isfinite().all()):
        return None
    integer, sign = _INTEGERS[values.dtype.itemsize]
    bits = values.contiguous().view(integer).long()
    return torch.where(bits < 0, -(bits + (1 << sign)), bits)


def _without_ties(state: State, groups: tuple[SortedGroup, ...]) -> State:
    """Return a state in which no two channels of a group have the same number in its vector."""
    result = dict(state)
    for one in groups:
        key = _key(result, one)
        if key is None:
            continue
        values = result[one.key.tensor].detach().clone()
        integer, sign = _INTEGERS[values.dtype.itemsize]
        ranks = torch.arange(len(key))
        ordered, order = key.sort(stable=True)
        apart = (ordered - ranks).cummax(0).values + ranks
        bits = torch.where(apart < 0, -apart - (1 << sign), apart).to(integer)
        positions = torch.from_numpy(one.key.positions[0])[order]
        values[positions.to(values.device)] = bits.view(values.dtype).to(values.device)
        result[one.key.tensor] = values
    return result
