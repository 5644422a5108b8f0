"""Runs of text in bytes, too long for random ones."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

LEGIBLE = 0.47
"""Share a byte that a random string keeps on being printable ASCII or UTF-8 with, at least: 98 of
256 bytes are printable ASCII or white space, and the sequences of two to three bytes add to it:
``x = 98/256 + 30/1024 / x + 1/256 / x**2`` has the root 0.465. Of a stream that has more legible
bytes, its own share counts."""

MOST_LEGIBLE = 0.74
"""The same share at most: text that fills a stream must not hide behind its own share. Weights
around one in bfloat16 have 0.74."""

LIKENESS = 0.85
"""Share of a run's characters that must be letters, digits or usual punctuation. Indices that run
through all codes have 0.75, prose, tables, JSON and base64 have 0.9 and more."""

LETTERS, SPACES = 0.45, (0.06, 0.4)
"""Share of small letters, and of white space, in prose. The high bytes of float64 and float16
weights of trained perceptrons are letters or digits of all kinds and have none."""

WORDS = 0.6
"""Share of letters, digits and white space: prose has 0.9 and more, JSON 0.65; bytes of batch
normalisation's weights a few steps from one had 0.57."""

ENTROPY, ONE_ROW = 3.0, 0.85
"""Least bits a character, and most characters of one row of sixteen of the code table: prose, hex
and tables of numbers have 3.3 and more, and 0.65 at most; weights near one had 2.2, and 0.97."""

_FEWEST_DISTINCT = 10
_MOST_OF_ONE = 0.5
_PUNCTUATION = frozenset(" \t\n\r.,:;-_/+=\"'")
_SHOWN = 40
_MOST_RUNS = 64
_REACH = 4096
_EIGHT = np.uint64(0x0101010101010101)


def _table(*ranges: tuple[int, int]) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    for first, last in ranges:
        table[first : last + 1] = True
    return table


_ASCII = _table((9, 10), (13, 13), (32, 126))
_TWO, _THREE = _table((0xC2, 0xDF)), _table((0xE1, 0xEC), (0xEE, 0xEE))


def find_text(content: Bytes, total: int, alpha: float, prose: bool = False) -> str | None:
    """Return the beginning of a run that reads like text; ``None`` if there is none.

    Args:
        content: one stream of bytes.
        total: bytes of all streams that are searched for one file.
        alpha: chance that random bytes have such a run in any of the ``total`` places.
        prose: for bytes that are not random by nature, such as exponents, which may all be letters
            or digits; then only words with spaces between them count.
    """
    if len(content) < 24:
        return None
    mask = legible(content)
    share = min(MOST_LEGIBLE, max(LEGIBLE, float(mask.mean())))
    shortest = math.ceil(math.log(max(total, 2) / alpha) / -math.log(share))
    for first, last in _runs(mask, shortest):
        text = content[first:last].tobytes().decode("utf-8", "ignore")
        if _reads_like_text(text) and (not prose or _reads_like_prose(text)):
            shown = "".join(c if " " <= c <= "~" else " " for c in text.strip()[:_SHOWN])
            return " ".join(shown.split())
    return None


def legible(content: Bytes) -> NDArray[np.bool_]:
    """Return which bytes are printable ASCII, or belong to a UTF-8 sequence of two or three."""
    mask = _ASCII[content]
    follows = content & np.uint8(0xC0) == np.uint8(0x80)
    two = _TWO[content[:-1]] & follows[1:]
    three = _THREE[content[:-2]] & follows[1:-1] & follows[2:]
    mask[:-1] |= two
    mask[1:] |= two
    for offset in range(3):
        mask[offset : len(mask) - 2 + offset] |= three
    return mask


def _runs(mask: NDArray[np.bool_], shortest: int) -> list[tuple[int, int]]:
    """Return some runs of ``shortest`` or more, which is at least 23: two whole groups of eight."""
    groups = mask[: len(mask) // 8 * 8].view(np.uint64) == _EIGHT
    found: list[tuple[int, int]] = []
    last = -1
    for group in np.flatnonzero(groups[:-1] & groups[1:]):
        start = int(group) * 8
        if start < last:
            continue
        before, after = mask[max(0, start - _REACH) : start], mask[start : start + _REACH]
        gaps, ends = np.flatnonzero(~before), np.flatnonzero(~after)
        first = max(0, start - _REACH) + (int(gaps[-1]) + 1 if len(gaps) else 0)
        last = start + (int(ends[0]) if len(ends) else len(after))
        if last - first >= shortest:
            found.append((first, last))
        if len(found) >= _MOST_RUNS:
            break
    return found


def _reads_like_text(text: str) -> bool:
    if not text or len(set(text)) < _FEWEST_DISTINCT:
        return False
    usual = sum(c.isalnum() or c in _PUNCTUATION for c in text)
    words = sum(c.isalnum() or c.isspace() for c in text)
    commonest = max(text.count(c) for c in set(text))
    return (
        usual >= LIKENESS * len(text)
        and words >= WORDS * len(text)
        and commonest <= _MOST_OF_ONE * len(text)
        and _is_varied(text)
    )


def _is_varied(text: str) -> bool:
    """Whether characters are spread as in writing: over more than one row of the code table."""
    shares = np.array([text.count(c) for c in set(text)]) / len(text)
    rows = Counter(ord(c) // 16 for c in text)
    entropy = float(-(shares * np.log2(shares)).sum())
    return entropy >= ENTROPY and max(rows.values()) <= ONE_ROW * len(text)


def _reads_like_prose(text: str) -> bool:
    letters = sum(c.islower() for c in text)
    spaces = sum(c.isspace() for c in text)
    return letters >= LETTERS * len(text) and SPACES[0] <= spaces / len(text) <= SPACES[1]
