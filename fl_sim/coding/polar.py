"""Polar codes: for payloads of a few dozen bytes, where a parity-check code's blocks are too long.

Arikan, "Channel polarization", IEEE Transactions on Information Theory 55, 2009: one transform of
``N = 2 ** n`` bits makes some of them nearly certain and the others nearly unknown; those that are
known least are frozen to 0. Decoded along a list of paths (Tal and Vardy, "List decoding of polar
codes", the same 61, 2015; values by min-sum, Balatsoukas-Stimming, Bastani Parizi and Burg, IEEE
Transactions on Signal Processing 63, 2015), of which a checksum picks one (Niu and Chen 2012).
"""

import math
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.coding.base import CODES, Bytes, Code, Soft
from fl_sim.settings import Settings

_LONGEST = 128
_SHORTENED_FROM = 7 / 16
_KNOWN = 1e9

Bits = NDArray[np.uint8]
Values = NDArray[np.float64]


class PolarSettings(Settings):
    """Settings of polar codes.

    Args:
        rate: payload and checksum in what is sent.
        check: bytes of the checksum in each block, which chooses among the decoder's paths and
            tells whether one of them holds; without one the likeliest path counts, and no failure
            is noticed.
        paths: that the decoder follows at once.

    Example:
        rate = 0.6
        check = 1
    """

    rate: float = Field(0.5, ge=0.05, le=0.95)
    check: int = Field(1, ge=0, le=4)
    paths: int = Field(32, ge=1, le=1024)


class _Layout(NamedTuple):
    """Where the bits of a block are.

    Args:
        information: positions before the transform that carry bits, ascending.
        frozen: which of all ``N`` are 0.
        sent: positions after the transform that are sent, in the order sent.
        unsent: what is known of the others: they are 0 (shortened), or nothing (punctured).
    """

    information: NDArray[np.int64]
    frozen: NDArray[np.bool_]
    sent: NDArray[np.int64]
    unsent: float


@CODES.register("polar", "for few bytes, decoded along a list of paths (Arikan 2009)")
class Polar(Code[PolarSettings]):
    """Polar codes of up to 1,024 bits, with a checksum, shortened or punctured to the size wanted.

    Chosen are the positions that are best where each bit that is sent is lost with probability
    ``1 - rate`` (exact for erasures). Positions that are not sent follow bit-reversed order
    (Niu, Chen and Lin, "Beyond turbo codes: rate-compatible punctured polar codes", ICC 2013).
    """

    Settings = PolarSettings

    @property
    def block(self) -> int:
        """See :class:`Code`."""
        return max(1, math.floor(_LONGEST * self.settings.rate) - self.settings.check)

    def coded(self, length: int) -> int:
        """See :class:`Code`."""
        return math.ceil((length + self.settings.check) / self.settings.rate)

    def encode_blocks(self, data: Bytes) -> Bytes:
        """See :class:`Code`."""
        checks = np.array([list(_checksum(row, self.settings.check)) for row in data], np.uint8)
        whole = np.concatenate([data, checks.reshape(len(data), -1)], axis=1)
        layout = self._layout(data.shape[1])
        before = np.zeros((len(data), len(layout.frozen)), np.uint8)
        before[:, layout.information] = np.unpackbits(whole, axis=1, bitorder="little")
        sent: Bytes = np.packbits(transform(before)[:, layout.sent], axis=1, bitorder="little")
        return sent

    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """See :class:`Code`."""
        data = np.zeros((len(soft), length), np.uint8)
        failed = np.zeros(len(soft), np.bool_)
        for number, values in enumerate(soft):
            data[number], failed[number] = self._decode(values, length)
        return data, failed

    def _decode(self, soft: Soft, length: int) -> tuple[Bytes, bool]:
        layout, check = self._layout(length), self.settings.check
        values = np.full(len(layout.frozen), layout.unsent)
        values[layout.sent] = -soft.astype(np.float64)
        words, _, costs = _paths(values[None], layout.frozen, np.zeros(1), self.settings.paths)
        found = transform(words)[np.argsort(costs, kind="stable")][:, layout.information]
        whole = np.packbits(found, axis=1, bitorder="little")
        for row in whole:
            if row[length:].tobytes() == _checksum(row[:length], check):
                # Nothing that is known, and everything looks like zeros with their checksum.
                return row[:length], not bool(soft.any())
        return whole[0, :length], True

    def _layout(self, length: int) -> _Layout:
        return _layout(8 * self.coded(length), 8 * (length + self.settings.check))


def transform(bits: Bits) -> Bits:
    """Return the polar transform of rows of ``2 ** n`` bits, which is its own inverse."""
    result = bits.copy()
    width = 1
    while width < result.shape[1]:
        pairs = result.reshape(len(result), -1, 2, width)
        pairs[:, :, 0] ^= pairs[:, :, 1]
        width *= 2
    return result


@lru_cache(maxsize=64)
def _layout(sent: int, wanted: int) -> _Layout:
    """Return the layout for so many bits sent, and wanted of them."""
    depth = max(1, math.ceil(math.log2(sent)))
    size, shortened = 2**depth, wanted / sent >= _SHORTENED_FROM
    order = _reversed(depth)
    kept, left = (order[:sent], order[sent:]) if shortened else (order[-sent:], order[:-sent])
    # The chance that a bit is lost, in the worst case that the design is for.
    lost = np.full(size, 1 - wanted / sent)
    lost[left] = 0.0 if shortened else 1.0
    unknown = _polarised(lost)
    if shortened:
        unknown[left] = 2.0  # frozen first, for what is not sent to be 0
    information = np.sort(np.argsort(unknown, kind="stable")[:wanted])
    frozen = np.ones(size, np.bool_)
    frozen[information] = False
    return _Layout(information, frozen, np.sort(kept), _KNOWN if shortened else 0.0)


def _reversed(depth: int) -> NDArray[np.int64]:
    """Return ``0 ... 2 ** depth - 1`` in bit-reversed order."""
    order = np.zeros(1, np.int64)
    for _ in range(depth):
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _polarised(lost: Values) -> Values:
    """Return the chance that each bit before the transform stays unknown, erasures given after."""
    if len(lost) == 1:
        return lost
    first, second = np.split(lost, 2)
    either, both = first + second - first * second, first * second
    return np.concatenate([_polarised(either), _polarised(both)])


def _paths(
    values: Values, frozen: NDArray[np.bool_], costs: Values, most: int
) -> tuple[Bits, NDArray[np.int64], Values]:
    """Follow the likeliest paths through a part of the transform.

    Args:
        values: of the bits after this part, ``[paths, n]``, positive where rather 0.
        frozen: of the bits before it, ``[n]``.
        costs: of the paths until here.
        most: paths at once.

    Returns:
        The bits after this part for each path that is left, the path it came from, and its cost.
    """
    count, size = values.shape
    if frozen.all():
        return (
            np.zeros((count, size), np.uint8),
            np.arange(count),
            costs + np.maximum(-values, 0).sum(axis=1),
        )
    if size == 1:
        both = np.concatenate([costs + np.maximum(s * values[:, 0], 0) for s in (-1.0, 1.0)])
        best = np.argsort(both, kind="stable")[:most]
        return (best >= count).astype(np.uint8)[:, None], best % count, both[best]
    first, second = values[:, : size // 2], values[:, size // 2 :]
    unsure = np.sign(first) * np.sign(second) * np.minimum(abs(first), abs(second))
    left, origin, costs = _paths(unsure, frozen[: size // 2], costs, most)
    first, second = first[origin], second[origin]
    surer = second + np.where(left, -first, first)
    right, later, costs = _paths(surer, frozen[size // 2 :], costs, most)
    return np.concatenate([left[later] ^ right, right], axis=1), origin[later], costs


def _checksum(data: Bytes, check: int) -> bytes:
    return zlib.crc32(data.tobytes()).to_bytes(4, "little")[:check]
