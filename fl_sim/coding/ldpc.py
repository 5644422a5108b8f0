"""Low-density parity-check codes, decoded from soft values by layered min-sum.

An irregular repeat-accumulate code (Jin, Khandekar and McEliece 2000) of circulants: 48 columns and
48 (1 - rate) rows of 128 x 128 shifted unit matrices, so 6,144 bits a block. Parity is a running
sum, so coding takes linear time. The decoder is normalised min-sum (Chen and Fossorier 2002), row
by row (Hocevar 2004), on many blocks at once: seconds a megabit. Min-sum does not need the
channel's noise: soft values count relative to each other. Degrees and factors were chosen by
simulation of binary symmetric channels; :data:`fl_sim.coding.rate.TOLERATED` has what they stand.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fl_sim.coding.base import CODES, Bytes, Code, Soft
from fl_sim.coding.rate import choose_rate
from fl_sim.randomness import derive_seed
from fl_sim.settings import Settings

COLUMNS = 48
LIFT = 128
_CHUNK = 32  # blocks at once, whose messages stay in the processor's cache
_KNOWN = np.float32(1e4)  # a bit that is known; soft values have sizes to 1
_SEED = 20260 * 7919  # of the construction: part of the format


class LdpcSettings(Settings):
    """Settings of LDPC codes.

    Args:
        rate: payload bits for each bit sent, 0.1 to 0.9, rounded to 1/48; or ``"rehearsed"``: what
            :func:`~fl_sim.coding.rate.choose_rate` makes of ``bit_error_rate``.
        bit_error_rate: as an attacker's rehearsal found it, for a rehearsed rate.
        iterations: most passes of the decoder.
    """

    rate: float | Literal["rehearsed"] = 0.5
    bit_error_rate: float | None = Field(None, ge=0, le=0.5)
    iterations: int = Field(40, ge=1, le=1000)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.rate == "rehearsed":
            if self.bit_error_rate is None:
                raise ValueError('rate = "rehearsed" needs bit_error_rate, as rehearsed')
            object.__setattr__(self, "rate", choose_rate(self.bit_error_rate))
        if not 0.1 <= float(self.rate) <= 0.9:
            raise ValueError(f"rate is {self.rate}; it is 0.1 to 0.9")
        return self


@CODES.register("ldpc", "low-density parity-check code; soft decisions")
class Ldpc(Code[LdpcSettings]):
    """Blocks of 6,144 bits, shorter ones by leaving out payload bits that are zero."""

    Settings = LdpcSettings

    @property
    def rows(self) -> int:
        """Rows of circulants."""
        return round(COLUMNS * (1 - float(self.settings.rate)))

    @property
    def block(self) -> int:
        """See :class:`Code`."""
        return (COLUMNS - self.rows) * LIFT // 8

    def coded(self, length: int) -> int:
        """See :class:`Code`."""
        return length + self.rows * LIFT // 8

    def encode_blocks(self, data: Bytes) -> Bytes:
        """See :class:`Code`."""
        graph = _graph(self.rows)
        parity = np.empty((len(data), self.rows * LIFT // 8), np.uint8)
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            bits = np.zeros((len(part), 8 * self.block), np.uint8)
            bits[:, : 8 * data.shape[1]] = np.unpackbits(part, axis=1, bitorder="little")
            sums = graph.parity(_lifted(bits))
            parity[start : start + _CHUNK] = np.packbits(_flat(sums), axis=1, bitorder="little")
        return np.concatenate([data, parity], axis=1)

    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """See :class:`Code`."""
        data = np.empty((len(soft), length), np.uint8)
        failed = np.empty(len(soft), np.bool_)
        iterations = self.settings.iterations
        for start in range(0, len(soft), _CHUNK):
            part = slice(start, start + _CHUNK)
            beliefs = self._beliefs(soft[part], length)
            wrong = _graph(self.rows).decode(beliefs, iterations)
            if wrong.all() and len(wrong) == _CHUNK:
                # All blocks see the same channel, and it is too bad: the others are tried briefly.
                iterations = -(-self.settings.iterations // 8)
            bits = _flat(beliefs)[:, : 8 * length] < 0
            data[part] = np.packbits(bits, axis=1, bitorder="little")
            failed[part] = wrong
        return data, failed

    def _beliefs(self, soft: Soft, length: int) -> Soft:
        """Return values ``[columns, lift, blocks]``, positive for 0, of sizes to 1.

        Sizes are cut at their median: where some weights move far and others not at all, a bit
        that looks very sure is no surer than one that looks sure, and would mislead all others.
        """
        size = np.median(np.abs(soft), axis=1, keepdims=True)
        size = np.where(size > 0, size, np.abs(soft).max(axis=1, keepdims=True))
        values = -np.clip(soft / np.where(size > 0, size, 1), -1, 1)
        beliefs = np.full((len(soft), COLUMNS * LIFT), _KNOWN, np.float32)
        beliefs[:, : 8 * length] = values[:, : 8 * length]
        beliefs[:, 8 * self.block :] = values[:, 8 * length :]
        return _lifted(beliefs)


@dataclass(frozen=True)
class _Edge:
    """A circulant: bit ``z + shift`` of a column is in check ``z`` of a row."""

    column: int
    shift: int
    open: bool = False
    """Whether check 0 lacks it: the running sum of the parity has a beginning."""


@dataclass(frozen=True)
class _Graph:
    rows: tuple[tuple[_Edge, ...], ...]

    @property
    def factor(self) -> np.float32:
        """What a check's answers are multiplied by; those of many bits are more overrated."""
        return np.float32(0.92 if len(self.rows) > 0.6 * COLUMNS else 0.85)

    def parity(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return parity bits ``[rows, lift, blocks]`` of payload bits laid out likewise."""
        sums = np.zeros((len(self.rows), *data.shape[1:]), np.uint8)
        for row, edges in zip(sums, self.rows, strict=True):
            for edge in edges:
                if edge.column < len(data):
                    row ^= _turned(data[edge.column], edge.shift)
        chain = sums.transpose(1, 0, 2).reshape(-1, sums.shape[2])
        chain = np.bitwise_xor.accumulate(chain, axis=0)
        return chain.reshape(LIFT, len(sums), -1).transpose(1, 0, 2)

    def decode(self, beliefs: Soft, iterations: int) -> NDArray[np.bool_]:
        """Improve beliefs in place; returns which blocks are no codewords in the end."""
        wrong = self._violated(beliefs)
        active = np.flatnonzero(wrong)
        work = np.ascontiguousarray(beliefs[:, :, active])
        messages = [np.zeros((len(e), LIFT, len(active)), np.float32) for e in self.rows]
        for _ in range(iterations):
            if not len(active):
                break
            for edges, known in zip(self.rows, messages, strict=True):
                _pass(work, edges, known, self.factor)
            still = self._violated(work)
            if not still.all():
                beliefs[:, :, active[~still]] = work[:, :, ~still]
                active = active[still]
                work = np.ascontiguousarray(work[:, :, still])
                messages = [np.ascontiguousarray(m[:, :, still]) for m in messages]
        beliefs[:, :, active] = work
        wrong[:] = False
        wrong[active] = True
        return wrong

    def _violated(self, beliefs: Soft) -> NDArray[np.bool_]:
        """Return which blocks violate a check, or have bits of which nothing is known."""
        bits = beliefs < 0
        result = (beliefs == 0).any(axis=(0, 1))
        for edges in self.rows:
            check = np.zeros(bits.shape[1:], np.bool_)
            for edge in edges:
                turned = _turned(bits[edge.column], edge.shift)
                if edge.open:
                    turned[0] = False
                check ^= turned
            result |= check.any(axis=0)
        return np.asarray(result)


def _pass(beliefs: Soft, edges: tuple[_Edge, ...], messages: Soft, factor: np.float32) -> None:
    """Let a row of checks speak to its bits, in place."""
    values = np.empty_like(messages)
    for place, edge in enumerate(edges):
        np.subtract(_turned(beliefs[edge.column], edge.shift), messages[place], out=values[place])
        if edge.open:
            values[place, 0] = np.inf
    sizes = np.abs(values)
    negative = values < 0
    weakest = sizes.argmin(axis=0)[None]
    least = np.take_along_axis(sizes, weakest, axis=0)
    np.put_along_axis(sizes, weakest, np.float32(np.inf), axis=0)
    second = sizes.min(axis=0, keepdims=True)
    least = np.minimum(least, _KNOWN) * factor
    second = np.minimum(second, _KNOWN) * factor
    answer = np.broadcast_to(least, sizes.shape).copy()
    np.put_along_axis(answer, weakest, second, axis=0)
    negative ^= np.logical_xor.reduce(negative, axis=0)[None]
    np.negative(answer, out=answer, where=negative)
    for place, edge in enumerate(edges):
        if edge.open:
            answer[place, 0] = 0
            values[place, 0] = beliefs[edge.column, edge.shift % LIFT]
        beliefs[edge.column] = _turned(values[place] + answer[place], -edge.shift)
    messages[:] = answer


def _turned(column: NDArray, shift: int) -> NDArray:  # type: ignore[type-arg]
    return np.roll(column, -shift, axis=0)


def _lifted(blocks: NDArray) -> NDArray:  # type: ignore[type-arg]
    """Lay out ``[blocks, columns * lift]`` as ``[columns, lift, blocks]``."""
    return np.ascontiguousarray(blocks.reshape(len(blocks), -1, LIFT).transpose(1, 2, 0))


def _flat(lifted: NDArray) -> NDArray:  # type: ignore[type-arg]
    """Return ``[blocks, columns * lift]``; the inverse of :func:`_lifted`."""
    return np.ascontiguousarray(lifted.transpose(2, 0, 1)).reshape(lifted.shape[2], -1)


_DEGREES = (  # up to a rate: the share of payload columns of high degree, this degree, the others'
    (0.15, 1.0, 8, 8),
    (0.4, 1.0, 5, 5),
    (0.85, 0.34, 7, 3),
    (1.0, 1.0, 4, 4),
)


@lru_cache(maxsize=8)
def _graph(rows: int) -> _Graph:
    """Build a code; the same graph on every machine."""
    data = COLUMNS - rows
    rate = data / COLUMNS
    share, degree, lower = next(rest for most, *rest in _DEGREES if rate <= most)
    high = round(share * data)
    raw = np.random.PCG64(derive_seed(_SEED, "ldpc", rows))
    edges: list[list[_Edge]] = [[] for _ in range(rows)]
    # Shift differences that a pair of rows already has; a second one would close a cycle of four.
    taken: dict[tuple[int, int], set[int]] = {}
    for row in range(rows - 1):
        taken[row, row + 1] = {0}  # the running sum's
    taken[0, rows - 1] = taken.get((0, rows - 1), set()) | {LIFT - 1}
    for column in range(data):
        wanted = min(int(degree if column < high else lower), rows)
        order = sorted(range(rows), key=lambda r: (len(edges[r]), int(raw.random_raw())))
        own: dict[int, int] = {}
        for row in sorted(order[:wanted]):
            own[row] = _shift(row, own, taken, raw)
        for row, shift in own.items():
            edges[row].append(_Edge(column, shift))
            for other, its in own.items():
                if other > row:
                    taken.setdefault((row, other), set()).add((shift - its) % LIFT)
    for row in range(rows):
        edges[row].append(_Edge(data + row, 0))
        last = row == 0
        edges[row].append(_Edge(data + (row - 1) % rows, LIFT - 1 if last else 0, open=last))
    return _Graph(tuple(tuple(row) for row in edges))


def _shift(
    row: int, own: dict[int, int], taken: dict[tuple[int, int], set[int]], raw: np.random.PCG64
) -> int:
    """Draw a shift that closes no cycle of four, if there is one."""
    start = int(raw.random_raw()) % LIFT
    for candidate in range(start, start + LIFT):
        clash = any((its - candidate) % LIFT in taken.get((o, row), ()) for o, its in own.items())
        if not clash:
            return candidate % LIFT
    return start
