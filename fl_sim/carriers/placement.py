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
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.carriers.base import State
from fl_sim.errors import FlSimError
from fl_sim.randomness import derive_seed
from fl_sim.settings import Settings

BLOCK = 512
"""Consecutive elements that stay together in the keyed order; a multiple of 8, so that the bits of
a block are whole bytes whatever their number in each element."""

RUNNING_STATISTICS = ("*running_mean", "*running_var")


class PlacementSettings(Settings):
    """Settings of carriers that use the model's own elements.

    Args:
        tensors: patterns (``*``, ``?``, ``[...]``) of the names of tensors that may carry. Only
            floating-point tensors ever do.
        exclude: patterns of names that may not.
        running_statistics: whether batch normalisation's running means and variances may carry.
        order: ``"keyed"`` by the carrier's seed, or ``"sequential"``: blocks as they lie, by name.
    """

    tensors: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    running_statistics: bool = False
    order: Literal["keyed", "sequential"] = "keyed"


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

    Attributes:
        block_ranks: for each tensor the ranks of its whole blocks, among all blocks.
        rest_ranks: for each tensor the ranks of its remaining elements, among all of these; they
            come after all blocks.
    """

    def __init__(self, sizes: Sequence[int], seed: int | None) -> None:
        self.elements = sum(sizes)
        whole = [size // BLOCK for size in sizes]
        rest = [size % BLOCK for size in sizes]
        self.blocks = sum(whole)
        self.block_ranks = _split(whole, seed, "blocks")
        self.rest_ranks = _split(rest, seed, "rest")

    def ranks(self, tensor: int) -> NDArray[np.int64]:
        """Return the rank of every element of one tensor, flattened."""
        inside = np.arange(BLOCK, dtype=np.int64)
        blocks = self.block_ranks[tensor][:, None] * BLOCK + inside
        return np.concatenate([blocks.ravel(), self.rest_ranks[tensor] + self.blocks * BLOCK])


def _split(counts: Sequence[int], seed: int | None, what: str) -> list[NDArray[np.int64]]:
    total = sum(counts)
    if seed is None:
        ranks = np.arange(total, dtype=np.int64)
    else:
        ranks = permutation(total, derive_seed(seed, "carrier order", what))
    return np.split(ranks, np.cumsum(counts)[:-1])


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


def masks(state: State, ranked: Ranked, count: int) -> dict[str, torch.Tensor]:
    """Return which elements have a rank below ``count``: boolean masks by name, empty ones not."""
    result = {}
    for name, ranks in ranked:
        used = ranks < count
        if used.any():
            result[name] = torch.from_numpy(used).reshape(state[name].shape)
    return result


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
