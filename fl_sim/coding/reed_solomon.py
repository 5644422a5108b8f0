"""Reed-Solomon codes over bytes (Reed and Solomon 1960), all blocks decoded at once.

The decoder is the textbook's: syndromes, Berlekamp-Massey, roots by trial, Forney's formula.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.coding.base import CODES, Bytes, Code, Soft, hard_bytes
from fl_sim.coding.gf256 import INV, MUL, matmul, power
from fl_sim.settings import Settings

_LENGTH = 255
_CHUNK = 1024  # blocks at once, so that memory stays small


class ReedSolomonSettings(Settings):
    """Settings of Reed-Solomon codes.

    Args:
        rate: payload bytes for each byte sent. Of 255 bytes, half as many wrong ones as there are
            parity bytes are corrected: with 0.5, 63 bytes, so a bit error rate of 0.025.
    """

    rate: float = Field(0.5, gt=0.01, lt=1)


@CODES.register("reed_solomon", "Reed-Solomon code over bytes; hard decisions")
class ReedSolomon(Code[ReedSolomonSettings]):
    """Blocks of 255 bytes. Good where errors come in clumps: a byte is wrong once."""

    Settings = ReedSolomonSettings
    symbol_bits = 8

    @property
    def block(self) -> int:
        """See :class:`Code`."""
        return _LENGTH - self.parity

    @property
    def parity(self) -> int:
        """Parity bytes of a block, an even number."""
        return min(252, max(2, 2 * round(_LENGTH * (1 - self.settings.rate) / 2)))

    def coded(self, length: int) -> int:
        """See :class:`Code`."""
        return length + self.parity

    def encode_blocks(self, data: Bytes) -> Bytes:
        """See :class:`Code`."""
        check = matmul(data, _remainders(self.parity)[self.block - data.shape[1] :])
        return np.concatenate([data, check], axis=1)

    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """See :class:`Code`."""
        received = hard_bytes(soft).reshape(len(soft), -1)
        failed = np.zeros(len(received), np.bool_)
        for start in range(0, len(received), _CHUNK):
            part = slice(start, start + _CHUNK)
            received[part], failed[part] = _correct(received[part], self.parity)
        failed |= ~soft.any(axis=1)  # nothing arrived, and nothing is a codeword
        return received[:, :length], failed


def _remainders(parity: int) -> Bytes:
    """Return the parity bytes of each unit vector of a full block, ``[255 - parity, parity]``."""
    generator = np.ones(1, np.uint8)
    for root in power(np.arange(parity)):
        longer = np.append(generator, np.uint8(0))
        longer[1:] ^= MUL[root, generator]
        generator = longer
    rows = np.zeros((_LENGTH - parity, parity), np.uint8)
    rest = generator[1:]  # of x^parity, highest power first
    for row in range(len(rows) - 1, -1, -1):
        rows[row] = rest
        head = rest[0]
        rest = np.append(rest[1:], np.uint8(0)) ^ MUL[head, generator[1:]]
    return rows


def _syndromes(blocks: Bytes, parity: int) -> Bytes:
    width = blocks.shape[1]
    powers = np.arange(width - 1, -1, -1)[:, None] * np.arange(parity)[None, :]
    return matmul(blocks, power(powers))


def _correct(blocks: Bytes, parity: int) -> tuple[Bytes, NDArray[np.bool_]]:
    """Correct blocks as far as that is possible; returns them and which ones failed."""
    result = blocks.copy()
    failed = np.zeros(len(blocks), np.bool_)
    syndromes = _syndromes(blocks, parity)
    damaged = np.flatnonzero(syndromes.any(axis=1))
    if not len(damaged):
        return result, failed
    syndromes = syndromes[damaged]
    locator, count = _berlekamp_massey(syndromes)
    errors, places = _errors(syndromes, locator, blocks.shape[1])
    mended = blocks[damaged] ^ errors
    good = (count <= parity // 2) & (places == count)
    good[good] = ~_syndromes(mended[good], parity).any(axis=1)
    result[damaged[good]] = mended[good]
    failed[damaged[~good]] = True
    return result, failed


def _berlekamp_massey(syndromes: Bytes) -> tuple[Bytes, NDArray[np.int64]]:
    """Return error locators, lowest power first, and how many errors each speaks of."""
    blocks, parity = syndromes.shape
    locator = np.zeros((blocks, parity + 1), np.uint8)
    locator[:, 0] = 1
    before = np.roll(locator, 1, axis=1)  # times x
    scale = np.ones(blocks, np.uint8)
    count = np.zeros(blocks, np.int64)
    for step in range(parity):
        terms = MUL[locator[:, : step + 1], syndromes[:, step::-1]]
        discrepancy = np.bitwise_xor.reduce(terms, axis=1)
        grows = (discrepancy != 0) & (2 * count <= step)
        factor = MUL[discrepancy, INV[scale]]
        changed = locator ^ MUL[factor[:, None], before]
        before = np.where(grows[:, None], locator, before)
        before = np.concatenate([np.zeros((blocks, 1), np.uint8), before[:, :-1]], axis=1)
        scale = np.where(grows, discrepancy, scale)
        count = np.where(grows, step + 1 - count, count)
        locator = changed
    return locator, count


def _errors(syndromes: Bytes, locator: Bytes, width: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Return what to add to blocks of ``width`` bytes, and at how many places."""
    blocks, parity = syndromes.shape
    exponents = np.arange(width - 1, -1, -1)  # the first byte has the highest power
    powers = power(-np.arange(parity + 1)[:, None] * exponents[None, :])
    root = matmul(locator, powers) == 0
    evaluator = np.zeros((blocks, parity), np.uint8)
    for shift in range(parity):
        evaluator[:, shift:] ^= MUL[locator[:, shift, None], syndromes[:, : parity - shift]]
    derivative = locator[:, 1::2]  # even powers vanish: the field has characteristic 2
    slopes = matmul(derivative, powers[0::2][: derivative.shape[1]])
    values = MUL[matmul(evaluator, powers[:parity]), INV[slopes]]
    values = MUL[values, power(exponents)[None, :]]
    return np.where(root, values, np.uint8(0)), root.sum(axis=1)
