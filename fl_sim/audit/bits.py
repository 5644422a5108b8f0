"""Low bits of float32 weights, against what training leaves: random, independent bits.

Training moves weights by steps that are large against their last bits, so low planes of the
mantissa are fair coins, independent of each other and of their neighbours'. Bits that were set to
something else than random look different. **Encrypted or well compressed bits are random too, and
look like trained ones: these tests cannot see them.**

Weights that training never reached are as their initialisation left them: uniform draws are
multiples of a fixed step, so the smaller ones end in zeros. A bit is therefore tested only in
weights large enough for it to lie above that step.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fl_sim.audit.subject import ALPHA, FEWEST, Subject
from fl_sim.checkpoints import Finding

PLANES = range(3, 13)
"""Planes tested. A smooth density over a binade tilts bit ``b`` by at most about ``2 ** (b - 25)``,
which these do not show in ten million weights; higher planes are tilted by nature."""

BYTES = (4, 8)
"""Lowest planes of the bytes whose frequencies are tested; one on a border of bytes, one not."""

_MARGIN = 3  # planes by which a bit of the largest binade must lie above the lowest
_BLOCK = 4096
_CONSTANT = 0.99
_HALF_PRECISION = {13: "float16", 16: "bfloat16"}
Words = NDArray[np.uint32]


def check_bits(subject: Subject) -> list[Finding]:
    """Test the low bit planes of every weight tensor: monobit, serial and byte frequencies.

    Monobit and runs tests as in NIST SP 800-22 (2.1 and 2.3, the latter as a normal test of the
    number of equal neighbours); chi-square of the frequencies of bytes by blocks of 4,096 weights.
    """
    words = {name: w for name, w in _words(subject) if len(w) >= FEWEST}
    blocks = sum(len(BYTES) * -(-len(w) // _BLOCK) for w in words.values())
    tests = max(1, 2 * len(PLANES) * len(words) + blocks)
    findings = []
    for name, own in words.items():
        precise = rounded_to(own)
        if precise is not None:
            findings.append(_precision(name, precise, len(own)))
        else:
            findings += _planes(name, own, tests) + _bytes(name, own, tests)
    return findings


def rounded_to(words: Words) -> int | None:
    """Return how many low bits are zero in nearly all words; ``None`` if that is fewer than 8."""
    bits = 0
    while bits < 23 and np.mean(words & np.uint32(2 ** (bits + 1) - 1) == 0) >= _CONSTANT:
        bits += 1
    return bits if bits >= 8 else None


def above_the_step(words: Words, plane: int) -> Words:
    """Return those words in which a bit tells of training, whatever the initialisation."""
    exponents = (words >> np.uint32(23) & np.uint32(255)).astype(np.int16)
    return words[exponents >= exponents.max(initial=0) - (plane - _MARGIN)]


def plane_statistics(words: Words, plane: int) -> tuple[float, float]:
    """Return the standard scores of a bit plane's ones, and of its equal neighbours."""
    bits = (words >> np.uint32(plane) & np.uint32(1)).astype(np.int8)
    count = max(2, len(bits))
    ones = (2.0 * bits.sum(dtype=np.int64) - len(bits)) / np.sqrt(count)
    equal = int((bits[1:] == bits[:-1]).sum())
    runs = (2.0 * equal - max(0, len(bits) - 1)) / np.sqrt(count - 1)
    return float(ones), float(runs)


def _planes(name: str, words: Words, tests: int) -> list[Finding]:
    odd: dict[str, float] = {}
    for plane in PLANES:
        scores = plane_statistics(above_the_step(words, plane), plane)
        for what, score in zip(("ones", "neighbours"), scores, strict=True):
            if 2 * stats.norm.sf(abs(score)) * tests < ALPHA:
                odd[f"bit {plane}, {what}"] = score
    if not odd:
        return []
    what = "Its low bits are no fair coins: something wrote them after training."
    return [Finding("bits", "carries", what, name, odd)]


def _bytes(name: str, words: Words, tests: int) -> list[Finding]:
    worst, blocks = 1.0, 0
    for plane in BYTES:
        content = (above_the_step(words, plane) >> np.uint32(plane)).astype(np.uint8)
        for first in range(0, len(content) - _BLOCK + 1, _BLOCK):
            counts = np.bincount(content[first : first + _BLOCK], minlength=256)
            expected = _BLOCK / 256
            chance = float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), 255))
            worst, blocks = min(worst, chance), blocks + (chance * tests < ALPHA)
    if not blocks:
        return []
    what = (
        f"In {blocks} blocks of {_BLOCK} weights the bytes of low bits are not evenly frequent, as "
        f"in content that is not encrypted."
    )
    return [Finding("bits", "carries", what, name, {"blocks": blocks, "smallest p": worst})]


def _precision(name: str, bits: int, count: int) -> Finding:
    known = _HALF_PRECISION.get(bits)
    if known is None:
        what = f"The lowest {bits} bits of its weights are zero, which no usual format gives."
        return Finding("precision", "carries", what, name, {"elements": count})
    what = f"Its weights are {known} numbers kept as float32; nothing is hidden in the bits below."
    return Finding("precision", "note", what, name, {"elements": count})


def _words(subject: Subject) -> Iterator[tuple[str, Words]]:
    """Return each weight tensor's words, without zeros: pruned weights have no bits to test."""
    for name, values in subject.weights():
        if subject.state[name].dtype == torch.float32:
            words = values.view(np.uint32)
            yield name, words[values != 0]
