"""Content that nobody encrypted: the signatures of files and text, in entries and in low bits."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.auditing.numbers import FLOAT32, Format, Mask, Words, format_of, words_of
from fl_sim.auditing.streams import Series, series_of, streams, volume
from fl_sim.auditing.subject import ALPHA, Subject
from fl_sim.auditing.text import find_text
from fl_sim.checkpoints import Finding

SIGNATURES = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "zip": b"PK\x03\x04\x14\x00\x00\x00",
    "bzip2": b"BZh91AY&SY",
    "xz": b"\xfd7zXZ\x00\x00",
    "7z": b"7z\xbc\xaf\x27\x1c\x00",
    "NumPy": b"\x93NUMPY\x01\x00",
    "PDF": b"%PDF-1.",
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "safetensors header": b'{"__metadata__"',
}
"""Seven bytes or more each: in 100 MB of random bytes one occurs by chance once in ten million
files."""

_FEWEST_SIGNS = 64
_MANY_ZEROS = 0.02  # random bytes have 0.004; five of gzip's eight bytes are zeros, as pruning's


def check_content(subject: Subject) -> list[Finding]:
    """Look for the signatures of files and for text, in whatever order of bits they were written.

    Searched are the bytes of every tensor, their single bytes, and the low bits of every depth; the
    signs of zeros and of values that are not finite; the places of the larger of two values; and
    the small tensors of a file one after another. A payload that is encrypted, or compressed
    without a header, is not seen.
    """
    every = [*series_of(subject.state), *_hidden_bits(subject.state)]
    total = sum(volume(series) for series in every)
    findings: list[Finding] = []
    told: set[tuple[str, str]] = set()
    for series in every:
        for kind, where, shown, places in _searched(series, total):
            if series.name is None and (kind, shown) in told:
                continue  # small tensors are searched together, and by kind
            told.add((kind, shown))
            what = f"{kind} in {series.where} {where}: {shown}."
            evidence = {"orders of bits": float(places)}
            findings.append(Finding("content", "carries", what, series.name, evidence))
    return findings


def entropy(content: NDArray[np.uint8]) -> float:
    """Return the Shannon entropy of bytes, in bits a byte."""
    counts = np.bincount(content, minlength=256)
    shares = counts[counts > 0] / max(1, len(content))
    return float(-(shares * np.log2(shares)).sum())


def _searched(series: Series, total: int) -> Iterator[tuple[str, str, str, int]]:
    """Return what was found, its first place, what it is, and the number of its places."""
    signatures: dict[str, str] = {}
    texts: dict[str, str] = {}
    for where, content, random in streams(series):
        data = content.tobytes()
        counts = {what: data.count(magic) for what, magic in SIGNATURES.items()}
        if counts["gzip"] and data.count(b"\0") > _MANY_ZEROS * len(data):
            counts["gzip"] = 0
        words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if words:
            signatures.setdefault(where, words)
        # Many small tensors of a norm are one or close to it, and so their bits are no coins.
        text = find_text(content, total, ALPHA, prose=not random or series.name is None)
        if text is not None:
            texts.setdefault(where, repr(text))
    for kind, places in (("Signatures of files", signatures), ("Text", texts)):
        if places:
            where, shown = next(iter(places.items()))
            yield kind, where, shown, len(places)


def _hidden_bits(state: Mapping[str, torch.Tensor]) -> Iterator[Series]:
    """Return bits that no other stream shows together: of signs, and of the larger of two values.

    Signs are those of zeros and of what is not finite, over the whole file in its order.
    """
    zeros, infinite = [], []
    tiny: dict[Format, list[Words]] = defaultdict(list)
    for name, tensor in state.items():
        words, form = words_of(tensor), format_of(tensor)
        if form is not None:
            negative = form.negative(words)
            zeros.append(negative[form.zeros(words)])
            infinite.append(negative[~form.finite(words)])
            tiny[form].append(words[form.denormals(words)])
        if words.itemsize > 1 and len(words) >= _FEWEST_SIGNS:
            low, high = words.min(), words.max()
            larger = words == high
            if low != high and bool((larger | (words == low)).all()):
                yield Series(name, "the places of the larger of its two values,", _ones(larger))
    for form, own in tiny.items():
        words = np.concatenate(own)
        if form.mantissa >= FLOAT32.mantissa and len(words) >= _FEWEST_SIGNS:
            yield Series(None, "the denormals'", words, form)
    for where, parts in (("zeros", zeros), ("values that are not finite", infinite)):
        signs = np.concatenate(parts) if parts else np.zeros(0, np.bool_)
        if len(signs) >= _FEWEST_SIGNS and signs.any():
            yield Series(None, f"the signs of {where},", _ones(signs))


def _ones(mask: Mask) -> NDArray[np.uint8]:
    return np.ascontiguousarray(mask).view(np.uint8)
