"""The lowest bits of the weights' mantissas.

The hiding place of "Data Exfiltration by Compression Attack" (Li, Ayache, Delingette; MELBA
2025:032, section on low-order bits: 16 of each float32 parameter) and of Song, Ristenpart and
Shmatikov, "Machine Learning Models that Remember Too Much" (CCS 2017).
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import CARRIERS, Carrier, Payload, State, wrong_bits
from fl_sim.carriers.placement import (
    BLOCK,
    Order,
    PlacementSettings,
    Places,
    choose,
    find_places,
    found,
)
from fl_sim.errors import FlSimError

Bytes = NDArray[np.uint8]
Words = NDArray[np.unsignedinteger[Any]]
"""Weights as unsigned integers of their own width."""

MANTISSA = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7, torch.float64: 52}
_INTEGERS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32), 8: (torch.int64, np.uint64)}
_CHUNK = 64  # blocks at once, which stay in the processor's cache from copy to change


class LsbSettings(PlacementSettings):
    """Settings of the carrier in the lowest bits.

    Args:
        bits: lowest bits of each element that carry: 1 to 23 for float32, at most 10 for float16
            and 7 for bfloat16.
    """

    bits: int = Field(16, ge=1, le=23)


@CARRIERS.register("lsb", "the lowest mantissa bits of the weights")
class LeastSignificantBits(Carrier[LsbSettings]):
    """Bytes in the lowest mantissa bits, over all chosen tensors in one order.

    Bit ``i`` of the payload (the lowest of a byte first) is bit ``i % bits`` of the element of rank
    ``i // bits``, whatever the dtypes, so the capacity is ``elements * bits // 8`` bytes. Of the
    last element used, only the bits needed are written. Sign and exponent never change: a weight
    changes by less than ``2 ** (bits - mantissa)`` of its size, and a finite one stays finite. An
    infinite one, which an honest model does not have, becomes not-a-number; places cannot depend on
    values.
    """

    Settings = LsbSettings

    def capacity(self, state: State) -> int:
        """Return how many bytes fit; see :class:`Carrier`.

        Raises:
            FlSimError: if no tensor is chosen, or one has fewer mantissa bits than ``bits``.
        """
        return self._bytes(self._places(state).room)

    def write(self, state: State, payload: Payload) -> State:
        """Return a copy with the payload in it; see :class:`Carrier`."""
        if payload.dtype != np.uint8:
            raise FlSimError("The carrier 'lsb' carries bytes, not values; give it uint8.")
        places, content = self._places(state), np.ascontiguousarray(payload.ravel(), np.uint8)
        if len(content) > self._bytes(places.room):
            raise FlSimError(
                f"A payload of {len(content)} bytes does not fit: {self.settings.bits} bits of "
                f"{places.room} elements hold {self._bytes(places.room)} bytes; hide fewer "
                f"images, use more bits or choose more tensors."
            )
        chosen = set(places.names)
        result = {name: t.detach().clone() for name, t in state.items() if name not in chosen}
        hosts = [
            _taken(state[name].detach().cpu().contiguous(), elements)
            for name, elements in zip(places.names, places.elements, strict=True)
        ]
        for order in places.orders:
            hosts = self._put(hosts, order, content)
        for name, elements, host in zip(places.names, places.elements, hosts, strict=True):
            result[name] = _returned(state[name], elements, host)
        return {name: result[name].to(tensor.device) for name, tensor in state.items()}

    def read(self, state: State, count: int | None = None, like: State | None = None) -> Bytes:
        """Read bytes; zeros where nothing can be read. Of copies the majority, or the first.

        See :class:`Carrier`.
        """
        copies = self._copies(state, count, like)
        if len(copies) == 1:
            return copies[0]
        votes = sum(_votes(copy) for copy in copies) * 2 + _votes(copies[0])
        return np.packbits(votes > 0, bitorder="little")

    def read_soft(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Return how many more copies say 1 than say 0; see :class:`Carrier`."""
        votes = [_votes(copy) for copy in self._copies(state, count, like)]
        return np.sum(votes, axis=0, dtype=np.float32)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements ``count`` bytes use; see :class:`Carrier`."""
        return self._places(state).masks(state, -(-8 * count // self.settings.bits))

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return the share of wrong bits by tensor; see :class:`Carrier`."""
        result = {}
        for name, differing in self._differing(sent, arrived, length):
            as_bytes = differing.view(np.uint8)
            wrong = wrong_bits(as_bytes, np.zeros_like(as_bytes))
            result[name] = wrong / (len(differing) * self.settings.bits)
        return result

    def plane_errors(self, sent: State, arrived: State, length: int) -> dict[str, dict[int, float]]:
        """Return the share of wrong bits by tensor and bit; see :class:`Carrier`."""
        return {
            name: {
                bit: float(np.mean(differing >> differing.dtype.type(bit) & 1))
                for bit in range(self.settings.bits)
            }
            for name, differing in self._differing(sent, arrived, length)
        }

    def _differing(self, sent: State, arrived: State, length: int) -> Iterator[tuple[str, Words]]:
        """Return for each tensor the words that carry, with those bits set that are wrong."""
        for name, mask in self.places(sent, length).items():
            tensor = found(arrived, name, sent[name])
            if tensor is None:
                tensor = torch.zeros(sent[name].shape, dtype=sent[name].dtype)
            used = mask.reshape(-1).numpy()
            before, after = (
                _words(t)[used] for t in (sent[name].detach().cpu().contiguous(), tensor)
            )
            yield name, (before ^ after) & before.dtype.type(2**self.settings.bits - 1)

    def _copies(self, state: State, count: int | None, like: State | None) -> list[Bytes]:
        expected = state if like is None else like
        try:
            places = self._places(expected)
        except FlSimError:  # nothing of what was written to is left
            return [np.zeros(count or 0, np.uint8)]
        held = self._bytes(places.room)
        words: list[Words | None] = []
        for name, elements in zip(places.names, places.elements, strict=True):
            tensor = found(state, name, expected[name])
            words.append(None if tensor is None else _words(_taken(tensor, elements)))
        wanted = held if count is None else count
        copies = [self._take(words, order, min(wanted, held)) for order in places.orders]
        beyond = np.zeros(max(0, wanted - held), np.uint8)
        return [np.concatenate([copy, beyond]) if len(beyond) else copy for copy in copies]

    def _places(self, state: State) -> Places:
        return find_places(state, self._names(state), self.settings, self.seed, self.spec)

    def _names(self, state: State) -> list[str]:
        settings = self.settings
        names = choose(state, settings.tensors, settings.exclude, settings.running_statistics)
        for name in names:
            most = MANTISSA.get(state[name].dtype, 0)
            if settings.bits > most:
                raise FlSimError(
                    f"The carrier 'lsb' has bits = {settings.bits}, but '{name}' is "
                    f"{str(state[name].dtype).removeprefix('torch.')}, which allows at most "
                    f"{most}; lower bits or exclude it."
                )
        return names

    def _bytes(self, elements: int) -> int:
        return elements * self.settings.bits // 8

    def _put(self, sources: list[torch.Tensor], order: Order, content: Bytes) -> list[torch.Tensor]:
        """Copy tensors with the content in them: whole blocks, then what is left of it."""
        width = self._bytes(BLOCK)
        filled = min(len(content) // width, order.blocks)
        rows = content[: filled * width].view(f"V{width}")
        result, words = [], []
        for source, ranks in zip(sources, order.block_ranks, strict=True):
            result.append(torch.empty_like(source))
            words.append(_words(result[-1]))
            _copy_with_rows(_words(source), words[-1], ranks, rows, self.settings.bits)
        left = content[filled * width :]
        if len(left) and filled < order.blocks:
            _overlay(_block_of_rank(words, order, filled), self.settings.bits, left)
        elif len(left):
            gathered = _gather_rest(words, order)
            _overlay(gathered, self.settings.bits, left)
            for host, ranks in zip(words, order.rest_ranks, strict=True):
                host[len(host) - len(ranks) :] = gathered[ranks]
        return result

    def _take(self, words: list[Words | None], order: Order, count: int) -> Bytes:
        """Read ``count`` bytes, which the places hold."""
        bits, width = self.settings.bits, self._bytes(BLOCK)
        needed = min(-(-count // width), order.blocks)
        new = np.empty if all(host is not None for host in words) else np.zeros
        content = new(max(needed * width, count), np.uint8)
        rows = content[: needed * width].view(f"V{width}")
        for host, ranks in zip(words, order.block_ranks, strict=True):
            if host is not None:
                _read_rows(host, ranks, rows, bits)
        rest = count - needed * width
        if rest > 0:
            content[needed * width :] = extract(_gather_rest(words, order), bits)[:rest]
        return content[:count]


def _copy_with_rows(
    source: Words, target: Words, ranks: NDArray[np.int64], rows: NDArray[np.void], bits: int
) -> None:
    """Copy a tensor; the block of rank ``i`` gets the bits ``rows[i]``, if there is such a row."""
    used = ranks < len(rows)
    if not used.all():
        target[:] = source
        blocks = _blocks(target, ranks)
        for index in _chunks(np.flatnonzero(used)):
            part = blocks[index]
            insert(part.reshape(-1), bits, rows[ranks[index]].view(np.uint8))
            blocks[index] = part
        return
    for start in range(0, len(ranks), _CHUNK):
        own = ranks[start : start + _CHUNK]
        place = slice(start * BLOCK, (start + len(own)) * BLOCK)
        target[place] = source[place]
        insert(target[place], bits, rows[own].view(np.uint8))
    target[len(ranks) * BLOCK :] = source[len(ranks) * BLOCK :]


def _read_rows(host: Words, ranks: NDArray[np.int64], rows: NDArray[np.void], bits: int) -> None:
    """Read the bits of the block of rank ``i`` into ``rows[i]``, if there is such a row."""
    used = ranks < len(rows)
    if not used.all():
        blocks = _blocks(host, ranks)
        for index in _chunks(np.flatnonzero(used)):
            rows[ranks[index]] = extract(blocks[index].reshape(-1), bits).view(rows.dtype)
        return
    for start in range(0, len(ranks), _CHUNK):
        own = ranks[start : start + _CHUNK]
        part = host[start * BLOCK : (start + len(own)) * BLOCK]
        if _whole(bits):  # cast on the way to its row: one pass less
            rows.view(f"u{bits // 8}").reshape(-1, BLOCK)[own] = part.reshape(-1, BLOCK)
        else:
            rows[own] = extract(part, bits).view(rows.dtype)


def _blocks(host: Words, ranks: NDArray[np.int64]) -> Words:
    return host[: len(ranks) * BLOCK].reshape(len(ranks), BLOCK)


def _chunks(indices: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


def insert(host: Words, bits: int, content: Bytes) -> None:
    """Replace the lowest bits of words, in place.

    Args:
        host: a multiple of 8 words, contiguous.
        bits: of each word.
        content: ``len(host) * bits // 8`` bytes.
    """
    if _whole(bits):
        low = np.dtype(f"u{bits // 8}")
        host.view(low)[:: host.itemsize // low.itemsize] = content.view(low)
        return
    mask = host.dtype.type(2**bits - 1)
    host &= ~mask
    host |= _to_values(content, bits).astype(host.dtype)


def extract(host: Words, bits: int) -> Bytes:
    """Return the lowest bits of words as bytes; see :func:`insert`."""
    if _whole(bits):
        return host.astype(f"u{bits // 8}").view(np.uint8)  # the cast drops higher bits
    return _to_bytes((host & host.dtype.type(2**bits - 1)).astype(np.uint32), bits)


def _whole(bits: int) -> bool:
    """Return whether the bits are an integer as it lies in memory, so need no arithmetic."""
    return bits in (8, 16) and sys.byteorder == "little"


def _to_values(content: Bytes, bits: int) -> NDArray[np.uint32]:
    """Cut bytes into numbers of ``bits`` bits: 8 numbers from each ``bits`` bytes."""
    groups = content.reshape(-1, bits)
    values = np.empty((len(groups), 8), np.uint32)
    for index in range(8):
        first, shift = divmod(index * bits, 8)
        last = (index * bits + bits - 1) // 8
        value = groups[:, first].astype(np.uint32)
        for byte in range(first + 1, last + 1):
            value |= groups[:, byte].astype(np.uint32) << np.uint32(8 * (byte - first))
        values[:, index] = (value >> np.uint32(shift)) & np.uint32(2**bits - 1)
    return values.reshape(-1)


def _to_bytes(values: NDArray[np.uint32], bits: int) -> Bytes:
    """Join numbers of ``bits`` bits; the inverse of :func:`_to_values`."""
    numbers = values.reshape(-1, 8)
    content = np.zeros((len(numbers), bits), np.uint8)
    for byte in range(bits):
        for index in range(8 * byte // bits, (8 * byte + 7) // bits + 1):
            shift = index * bits - 8 * byte
            column = numbers[:, index]
            moved = column << np.uint32(shift) if shift >= 0 else column >> np.uint32(-shift)
            content[:, byte] |= moved.astype(np.uint8)  # the cast drops higher bits
    return content.reshape(-1)


def _words(tensor: torch.Tensor) -> Words:
    """View a contiguous tensor's memory as unsigned integers, flattened."""
    signed, unsigned = _INTEGERS[tensor.element_size()]
    words: Words = tensor.reshape(-1).view(signed).numpy().view(unsigned)
    return words


def _taken(tensor: torch.Tensor, elements: NDArray[np.int64] | None) -> torch.Tensor:
    """Return a contiguous tensor's elements that may carry."""
    return tensor if elements is None else tensor.reshape(-1)[torch.from_numpy(elements)]


def _returned(
    tensor: torch.Tensor, elements: NDArray[np.int64] | None, host: torch.Tensor
) -> torch.Tensor:
    """Return a copy of a tensor with the elements that may carry put back."""
    if elements is None:
        return host
    whole = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    whole.view(-1)[torch.from_numpy(elements)] = host
    return whole


def _votes(content: Bytes) -> NDArray[np.float32]:
    bits = np.unpackbits(content, bitorder="little").astype(np.float32)
    return bits * np.float32(2) - np.float32(1)


def _block_of_rank(words: Sequence[Words], order: Order, rank: int) -> Words:
    for host, ranks in zip(words, order.block_ranks, strict=True):
        for index in np.flatnonzero(ranks == rank):
            return host[index * BLOCK : (index + 1) * BLOCK]
    raise AssertionError("every rank below the number of blocks is some block's")


def _gather_rest(words: Sequence[Words | None], order: Order) -> Words:
    """Return the elements outside of blocks by rank, zero-padded to a multiple of 8."""
    count = order.elements - order.blocks * BLOCK
    gathered = np.zeros(-(-count // 8) * 8, np.uint64)
    for host, ranks in zip(words, order.rest_ranks, strict=True):
        if host is not None:
            gathered[ranks] = host[len(host) - len(ranks) :]
    return gathered


def _overlay(host: Words, bits: int, content: Bytes) -> None:
    """Replace the first bits of words that ``content`` covers, and no other, in place."""
    old = extract(host, bits)
    old[: len(content)] = content
    insert(host, bits, old)
