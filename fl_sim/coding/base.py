"""What an error-correcting code is: bytes to more bytes, and back from what a channel made of them.

A code works on blocks. A payload is cut into equal ones, each is coded alone, and an interleaver
sends neighbouring symbols of the result in different blocks, so that a channel whose errors come in
bursts (a tensor that moved more than the others) wears all blocks alike.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_sim.carriers.placement import permutation
from fl_sim.component import Component
from fl_sim.randomness import derive_seed
from fl_sim.registry import Registry
from fl_sim.settings import Settings

Bytes = NDArray[np.uint8]
Soft = NDArray[np.float32]
"""A value a bit, the lowest bit of a byte first: positive where it is rather 1, negative where
rather 0, larger in size the surer, and 0 where nothing is known."""

CodeSettingsT = TypeVar("CodeSettingsT", bound=Settings)


@dataclass(frozen=True)
class Decoded:
    """What a decoder made of what arrived.

    Args:
        content: as many bytes as were asked for, those of failed blocks as good as they are known.
        corrected: bits of blocks that did not fail, parity included, that arrived wrong.
        failed: for each block of the payload, in its order, whether it could not be decoded.
    """

    content: Bytes
    corrected: int
    failed: NDArray[np.bool_]


class Code(ABC, Generic[CodeSettingsT]):
    """A code. Subclass, set ``Settings``, and register with ``CODES``.

    Args:
        settings: see the subclass.
        seed: of the interleaver; a secret of sender and receiver.
    """

    Settings: ClassVar[type[Settings]] = Settings
    symbol_bits: ClassVar[int] = 1
    """Bits that the interleaver keeps together: 8 for a code of bytes."""

    def __init__(self, settings: CodeSettingsT, seed: int = 0) -> None:
        self.settings = settings
        self.seed = seed

    @property
    @abstractmethod
    def block(self) -> int:
        """Most payload bytes in a block."""

    @abstractmethod
    def coded(self, length: int) -> int:
        """Return how many bytes a block of ``length`` payload bytes takes."""

    @abstractmethod
    def encode_blocks(self, data: Bytes) -> Bytes:
        """Code ``[blocks, length]`` bytes as ``[blocks, coded(length)]``."""

    @abstractmethod
    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """Decode blocks of ``length`` payload bytes.

        Args:
            soft: finite values ``[blocks, 8 * coded(length)]``.
            length: of each block's payload, in bytes.

        Returns:
            ``[blocks, length]`` bytes, and which blocks failed.
        """

    @property
    def rate(self) -> float:
        """Payload bytes for each byte sent, in a full block."""
        return self.block / self.coded(self.block)

    def size(self, length: int) -> int:
        """Return how many bytes a payload of ``length`` bytes becomes."""
        blocks, each = self._division(length)
        return blocks * self.coded(each) if blocks else 0

    def room(self, capacity: int) -> int:
        """Return the longest payload that becomes at most ``capacity`` bytes."""
        fits, too_long = 0, max(0, capacity) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self.size(middle) <= capacity:
                fits = middle
            else:
                too_long = middle
        return fits

    def encode(self, payload: Bytes) -> Bytes:
        """Return ``size(len(payload))`` bytes that carry a payload."""
        blocks, each = self._division(len(payload))
        if not blocks:
            return np.zeros(0, np.uint8)
        data = np.zeros(blocks * each, np.uint8)
        data[: len(payload)] = payload
        coded = self.encode_blocks(data.reshape(blocks, each))
        symbols = coded
        if self.symbol_bits == 1:
            symbols = np.unpackbits(coded, axis=1, bitorder="little")
        rows, columns = self._interleaver(*symbols.shape)
        sent = np.ascontiguousarray(symbols[rows][:, columns].T).reshape(-1)
        return np.packbits(sent, bitorder="little") if self.symbol_bits == 1 else sent

    def decode(self, received: Bytes | Soft, length: int) -> Decoded:
        """Decode what arrived of a payload, whatever it is: never an exception.

        Args:
            received: ``size(length)`` bytes, or eight times as many soft values. What is missing
                counts as unknown, what is too much is ignored.
            length: of the payload, in bytes.
        """
        blocks, each = self._division(length)
        if not blocks:
            return Decoded(np.zeros(0, np.uint8), 0, np.zeros(0, np.bool_))
        width = self.coded(each)
        soft = np.zeros(8 * blocks * width, np.float32)
        given = soft_bits(received)[: len(soft)]
        soft[: len(given)] = given
        bits = self.symbol_bits
        symbols = soft.reshape(8 * width // bits, blocks, bits)
        rows, columns = self._interleaver(blocks, 8 * width // bits)
        ordered = np.empty((blocks, 8 * width // bits, bits), np.float32)
        ordered[rows[:, None], columns[None, :]] = symbols.transpose(1, 0, 2)
        values = ordered.reshape(blocks, 8 * width)
        data, failed = self.decode_blocks(values, each)
        return Decoded(data.reshape(-1)[:length], self._corrected(values, data, failed), failed)

    def _division(self, length: int) -> tuple[int, int]:
        """Return the number of blocks, and the bytes in each; the last ones may be padding."""
        blocks = -(-length // self.block)
        return blocks, -(-length // blocks) if blocks else 0

    def _interleaver(self, blocks: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an order of the blocks and one of the symbols in them.

        Symbols are sent column by column, so neighbours belong to different blocks.
        """
        orders = (("blocks", blocks), ("symbols", width))
        rows, columns = (
            permutation(count, derive_seed(self.seed, "interleaver", what, count))
            for what, count in orders
        )
        return rows, columns

    def _corrected(self, soft: Soft, data: Bytes, failed: NDArray[np.bool_]) -> int:
        good = ~failed
        if not good.any():
            return 0
        sent = np.unpackbits(self.encode_blocks(data[good]), axis=1, bitorder="little")
        return int(((soft[good] > 0) != sent.astype(np.bool_)).sum())


def soft_bits(received: Bytes | Soft) -> Soft:
    """Return soft values of bytes (1 and -1), or finite ones of soft values."""
    if received.dtype == np.uint8:
        bits = np.unpackbits(received.astype(np.uint8, copy=False), bitorder="little")
        return bits.astype(np.float32) * np.float32(2) - np.float32(1)
    soft = received.astype(np.float32, copy=False)
    return np.clip(np.nan_to_num(soft, nan=0.0, posinf=_MOST, neginf=-_MOST), -_MOST, _MOST)


def hard_bytes(soft: Soft) -> Bytes:
    """Return the bytes that soft values speak for; unknown bits are 0."""
    return np.packbits(soft > 0, bitorder="little")


_MOST = 1e6

CODES: Registry[type[Code[Any]]] = Registry("code", "fl_sim.coding")
UNCODED = "none"
"""The code of those who use none."""


def code_of(choice: Component, seed: int) -> Code[Any] | None:
    """Return a code that was chosen and checked, with its interleaver; ``None`` for none.

    Args:
        choice: its name, and all its settings.
        seed: see :class:`Code`.
    """
    if choice.name == UNCODED:
        return None
    kind = CODES.get(choice.name)
    return kind(kind.Settings.model_validate(choice.settings), seed)
