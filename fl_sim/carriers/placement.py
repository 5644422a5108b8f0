"""Which elements of a model carry, and in which order: the same for sender and receiver.

Everything here follows from names, shapes and dtypes alone, and never from the order of a
dictionary: a file may return its tensors in another order than the network has them.

The keyed order moves whole blocks of 512 consecutive elements, over all tensors, by a permutation
drawn from the secret seed, and the elements that fill no block singly, after all blocks. Moving
single elements would take an index of eight bytes for each two bytes hidden, and a cache miss for
each; blocks cost little more than a copy. A small payload is still spread evenly over the model. It
hides where a payload lies; it is no encryption.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from fl_sim.carriers.base import State
from fl_sim.carriers.dead import dead_weights, forward_order
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import derive_seed
from fl_sim.settings import Settings

BLOCK = 512
"""Consecutive elements that stay together in the keyed order; a multiple of 8, so that the bits of
a block are whole bytes whatever their number in each element."""

RUNNING_STATISTICS = ("*running_mean", "*running_var")


def _is_part(part: tuple[int, int]) -> tuple[int, int]:
    number, parts = part
    if not 0 <= number < parts:
        raise ValueError(f"part {number} of {parts} does not exist; they are numbered from 0")
    return part


Part = Annotated[tuple[int, int], AfterValidator(_is_part)]


class PlacementSettings(Settings):
    """Settings of carriers that use the model's own elements.

    Args:
        tensors: patterns (``*``, ``?``, ``[...]``) of the names of tensors that may carry. Only
            floating-point tensors ever do.
        exclude: patterns of names that may not.
        running_statistics: whether batch normalisation's running means and variances may carry.
        elements: ``"all"``, or only the ``"dead"`` ones, which no gradient can reach at the size
            of these images (see :func:`fl_sim.carriers.dead.dead_weights`), or the ``"live"`` rest.
        order: ``"keyed"`` by the carrier's seed over all tensors; ``"late"``, tensor after tensor
            from the network's output to its input; ``"expected_error"``, tensor after tensor from
            the smallest expected error; in both each tensor in keyed order. Or ``"sequential"``:
            blocks as they lie, by name.
        expected_error: how wrong a tensor becomes, as rehearsed (any measure that grows with it),
            by pattern of its name; the first that fits counts. Tensors that none fits come last.
        copies: how often the payload is written, in different places; what is read is their sum.
            More than one uses whole blocks of 512 elements only.
        part: which of so many disjoint parts of the places: its number, from 0, and how many there
            are. Senders who share a seed and a model keep to one each.
    """

    tensors: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    running_statistics: bool = False
    elements: Literal["all", "dead", "live"] = "all"
    order: Literal["keyed", "sequential", "late", "expected_error"] = "keyed"
    expected_error: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    copies: int = Field(1, ge=1, le=64)
    part: Part = (0, 1)

    @model_validator(mode="after")
    def _rehearsed(self) -> Self:
        if (self.order == "expected_error") != bool(self.expected_error):
            raise ValueError(
                'order = "expected_error" and the table expected_error go together: patterns of '
                "names with numbers, as rehearsed"
            )
        return self


def natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key by which ``"layer.2"`` comes before ``"layer.10"``."""
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of the patterns; letter case counts."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def choose(
    state: State,
    tensors: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    running_statistics: bool = False,
) -> list[str]:
    """Return the names of the floating-point tensors that may carry, in natural order.

    Args:
        state: names, shapes and dtypes count.
        tensors: see :class:`PlacementSettings`; so for the others.

    Raises:
        FlSimError: if there are none.
    """
    barred = (*exclude, *(() if running_statistics else RUNNING_STATISTICS))
    names = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and matches(name, tensors)
        and not matches(name, barred)
    ]
    if not names:
        raise FlSimError(
            f"The carrier's tensors = {list(tensors)} with exclude = {list(exclude)} choose no "
            f"floating-point tensor of the model{_example(state)}; change these patterns."
        )
    return sorted(names, key=natural)


def _example(state: State) -> str:
    names = sorted((n for n, t in state.items() if t.is_floating_point()), key=natural)
    return f", which has for example '{names[0]}'" if names else ""


def permutation(count: int, seed: int) -> NDArray[np.int64]:
    """Return a permutation of ``range(count)`` that no version of NumPy changes.

    NumPy promises the raw stream of a bit generator for good, and not what its ``permutation``
    makes of it; a file must be readable years later.
    """
    generator = np.random.PCG64(seed)
    return np.argsort(generator.random_raw(count)) if count else np.empty(0, np.int64)


class Order:
    """The rank of each element of some tensors: ``range(elements)``, permuted.

    Args:
        sizes: number of elements of each tensor.
        seed: of the permutation; ``None`` for blocks as they lie.
        turns: for each tensor when its turn comes: all blocks of a lower turn rank before those of
            a higher one. By default all have the same.

    Attributes:
        block_ranks: for each tensor the ranks of its whole blocks, among all blocks.
        rest_ranks: for each tensor the ranks of its remaining elements, among all of these; they
            come after all blocks.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int | None, turns: Sequence[int] | None = None
    ) -> None:
        self.elements = sum(sizes)
        whole = [size // BLOCK for size in sizes]
        rest = [size % BLOCK for size in sizes]
        self.blocks = sum(whole)
        self.block_ranks = _split(whole, seed, "blocks", turns)
        self.rest_ranks = _split(rest, seed, "rest", turns)

    def ranks(self, tensor: int) -> NDArray[np.int64]:
        """Return the rank of every element of one tensor, flattened."""
        inside = np.arange(BLOCK, dtype=np.int64)
        blocks = self.block_ranks[tensor][:, None] * BLOCK + inside
        return np.concatenate([blocks.ravel(), self.rest_ranks[tensor] + self.blocks * BLOCK])

    def used(self, tensor: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the elements of one tensor that have ranks below ``count``, and these ranks."""
        inside = np.arange(BLOCK, dtype=np.int64)
        blocks = np.flatnonzero(self.block_ranks[tensor] * BLOCK < count)
        places = (blocks[:, None] * BLOCK + inside).ravel()
        ranks = (self.block_ranks[tensor][blocks][:, None] * BLOCK + inside).ravel()
        if count > self.blocks * BLOCK:
            first = len(self.block_ranks[tensor]) * BLOCK
            rest = np.arange(first, first + len(self.rest_ranks[tensor]))
            places = np.concatenate([places, rest])
            ranks = np.concatenate([ranks, self.rest_ranks[tensor] + self.blocks * BLOCK])
        below = ranks < count
        return places[below], ranks[below]

    def part(self, number: int, parts: int) -> "Order":
        """Return one of several orders that share out the whole blocks evenly, rank by rank."""
        result = Order([0] * len(self.block_ranks), None)
        result.blocks = self.blocks // parts
        result.elements = result.blocks * BLOCK
        for tensor, ranks in enumerate(self.block_ranks):
            own = (ranks % parts == number) & (ranks // parts < result.blocks)
            # A rank beyond all others: a block that is not used.
            result.block_ranks[tensor] = np.where(own, ranks // parts, _NEVER)
        return result


_NEVER = 2**40


def _split(
    counts: Sequence[int], seed: int | None, what: str, turns: Sequence[int] | None
) -> list[NDArray[np.int64]]:
    total = sum(counts)
    if seed is None:
        ranks = np.arange(total, dtype=np.int64)
    else:
        ranks = permutation(total, derive_seed(seed, "carrier order", what))
    if turns is not None:
        by_turn = np.lexsort((ranks, np.repeat(np.asarray(turns), counts)))
        ranks = np.empty(total, np.int64)
        ranks[by_turn] = np.arange(total)
    return np.split(ranks, np.cumsum(counts)[:-1])


@dataclass(frozen=True)
class Places:
    """Where a carrier writes, in a state of given names and shapes.

    Args:
        names: of the tensors.
        elements: for each the indices of those elements that may carry; ``None`` for all.
        orders: of these elements, one for each copy of the payload.
    """

    names: list[str]
    elements: list[NDArray[np.int64] | None]
    orders: list[Order]

    @property
    def room(self) -> int:
        """Elements that a copy of the payload can use."""
        return self.orders[0].elements

    def used(
        self, copy: int, count: int
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Return for each tensor its elements that have ranks below ``count``, and these ranks."""
        for tensor, name in enumerate(self.names):
            places, ranks = self.orders[copy].used(tensor, count)
            chosen = self.elements[tensor]
            if len(places):
                yield name, places if chosen is None else chosen[places], ranks

    def masks(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return the elements that have ranks below ``count`` in any copy: masks by name."""
        result: dict[str, torch.Tensor] = {}
        for copy in range(len(self.orders)):
            for name, places, _ in self.used(copy, count):
                if name not in result:
                    result[name] = torch.zeros(state[name].shape, dtype=torch.bool)
                result[name].view(-1)[torch.from_numpy(places)] = True
        return result


def find_places(
    state: State,
    names: Sequence[str],
    settings: PlacementSettings,
    seed: int,
    spec: ModelSpec | None,
) -> Places:
    """Return where a carrier writes.

    Args:
        state: names and shapes count.
        names: of the tensors that may carry.
        settings: where in them, and in which order.
        seed: the carrier's.
        spec: the network, for dead elements and the late order.

    Raises:
        FlSimError: if the settings need the network and it is not known, or it has no such place.
    """
    elements: list[NDArray[np.int64] | None] = [None] * len(names)
    if settings.elements == "dead":
        names, dead = _dead_elements(state, names, _known(spec, 'elements = "dead"'))
        elements = list(dead)
    elif settings.elements == "live":
        elements = _live_elements(state, names, _known(spec, 'elements = "live"'))
    sizes = [
        state[name].numel() if chosen is None else len(chosen)
        for name, chosen in zip(names, elements, strict=True)
    ]
    key = None if settings.order == "sequential" else seed
    order = Order(sizes, key, _turns(names, settings, spec))
    (part, others), copies = settings.part, settings.copies
    parts = copies * others
    numbers = range(part * copies, (part + 1) * copies)
    orders = [order] if parts == 1 else [order.part(number, parts) for number in numbers]
    return Places(list(names), elements, orders)


def _known(spec: ModelSpec | None, why: str) -> ModelSpec:
    if spec is None:
        raise FlSimError(f"A carrier with {why} has to know the network; give it the spec.")
    return spec


def _dead_elements(
    state: State, names: Sequence[str], spec: ModelSpec
) -> tuple[list[str], list[NDArray[np.int64]]]:
    dead = dead_weights(spec)
    kept = [name for name in names if name in dead and dead[name].shape == state[name].shape]
    if not kept:
        raise FlSimError(
            f"The model '{spec.name}' has no dead weights in the chosen tensors at {spec.size} "
            f'pixels; choose other tensors or elements = "all".'
        )
    return kept, [np.flatnonzero(dead[name].numpy().reshape(-1)) for name in kept]


def _live_elements(
    state: State, names: Sequence[str], spec: ModelSpec
) -> list[NDArray[np.int64] | None]:
    dead = dead_weights(spec)
    return [
        np.flatnonzero(~dead[name].numpy().reshape(-1))
        if name in dead and dead[name].shape == state[name].shape
        else None
        for name in names
    ]


def _turns(
    names: Sequence[str], settings: PlacementSettings, spec: ModelSpec | None
) -> list[int] | None:
    if settings.order == "late":
        known = forward_order(_known(spec, 'order = "late"'))
        position = {name: len(known) - place for place, name in enumerate(known)}
        return [position.get(name, len(known) + 1) for name in names]
    if settings.order == "expected_error":
        errors = [
            next((e for p, e in settings.expected_error.items() if fnmatchcase(name, p)), np.inf)
            for name in names
        ]
        levels = sorted(set(errors))
        return [levels.index(error) for error in errors]
    return None


Ranked = Iterable[tuple[str, NDArray[np.int64]]]
"""Names of tensors with the rank of each of their elements, flattened."""


def in_one_order(state: State, names: Sequence[str], seed: int | None) -> Ranked:
    """Rank the elements of all the tensors together."""
    order = Order([state[name].numel() for name in names], seed)
    for index, name in enumerate(names):
        yield name, order.ranks(index)


def tensor_by_tensor(
    state: State, names: Sequence[str], count: int, seed: int | None
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Rank tensor after tensor, each in its own order, until ``count`` elements are ranked."""
    start = 0
    for name in names:
        if start >= count:
            return
        own = None if seed is None else derive_seed(seed, "carrier tensor", name)
        ranks = Order([state[name].numel()], own).ranks(0)
        yield name, start + ranks
        start += len(ranks)


def copied(state: State) -> State:
    """Return a copy of a state dictionary, every tensor on the CPU and contiguous."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def found(state: State, name: str, expected: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor as it was expected, in dtype too; ``None`` if missing or reshaped."""
    tensor = state.get(name)
    if tensor is None or tensor.shape != expected.shape or tensor.is_complex():
        return None
    return tensor.detach().to("cpu", expected.dtype).contiguous()
