"""A coded payload that says how long it is, so that a receiver needs to know only the code.

Before it stand its length and a checksum of that, 8 bytes, repeated often enough to be read where
a quarter of all bits is wrong: 504 bytes in all.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.coding.base import Bytes, Code, Decoded, Soft, hard_bytes, soft_bits

_COPIES = 63
_HEADER = 8
PREAMBLE = _COPIES * _HEADER
"""Bytes that come before the coded payload."""


@dataclass(frozen=True)
class Opened:
    """What a receiver got.

    Args:
        raw: the coded bytes as they arrived, before correction.
        decoded: the payload; ``None`` if its length could not be read.
    """

    raw: Bytes
    decoded: Decoded | None

    @property
    def payload(self) -> Bytes:
        """The payload as far as it was decoded."""
        return np.zeros(0, np.uint8) if self.decoded is None else self.decoded.content


class Envelope:
    """Codes payloads and reads them back.

    Args:
        code: with which.
    """

    def __init__(self, code: Code[Any]) -> None:
        self.code = code

    def room(self, capacity: int) -> int:
        """Return the longest payload for ``capacity`` bytes of a carrier; 0 where none fits."""
        return self.code.room(capacity - PREAMBLE)

    def size(self, length: int) -> int:
        """Return how many bytes of a carrier a payload of ``length`` bytes takes."""
        return PREAMBLE + self.code.size(length)

    def seal(self, payload: Bytes) -> Bytes:
        """Return ``size(len(payload))`` bytes."""
        length = len(payload).to_bytes(4, "little")
        header = length + zlib.crc32(length).to_bytes(4, "little")
        preamble = np.frombuffer(header * _COPIES, np.uint8)
        return np.concatenate([preamble, self.code.encode(payload)])

    def open(self, read: Callable[[int], Soft], capacity: int, length: int | None = None) -> Opened:
        """Read and decode a payload.

        Args:
            read: returns the first so many bytes of a carrier, as soft values a bit.
            capacity: of the carrier, in bytes.
            length: of the payload, for a receiver who knows it; else it is read.
        """
        if length is None:
            length = _length(read(min(PREAMBLE, capacity)))
        if length is None or self.size(length) > capacity:
            return Opened(hard_bytes(read(capacity)), None)
        soft = read(self.size(length))
        return Opened(hard_bytes(soft), self.code.decode(soft[8 * PREAMBLE :], length))

    def open_bytes(self, sealed: NDArray[np.uint8]) -> Opened:
        """Read and decode a payload that is there as bytes."""
        return self.open(lambda count: soft_bits(sealed[:count]), len(sealed))


def _length(soft: Soft) -> int | None:
    if len(soft) < 8 * PREAMBLE:
        return None
    # Signs count, not sizes: a few wild values must not outvote the rest.
    votes = np.sign(soft[: 8 * PREAMBLE]).reshape(_COPIES, 8 * _HEADER).sum(axis=0)
    header = hard_bytes(votes.astype(np.float32)).tobytes()
    if zlib.crc32(header[:4]) != int.from_bytes(header[4:], "little"):
        return None
    return int.from_bytes(header[:4], "little")
