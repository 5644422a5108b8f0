"""Entries of integers: counts and indices, quantised weights, or something else.

Codes of quantised weights are smooth: neighbouring codes are about as frequent. Low bits that were
written, encrypted or not, make the frequencies go down in steps instead.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from fl_sim.auditing.bits import plane_statistics
from fl_sim.auditing.content import entropy
from fl_sim.auditing.numbers import is_real, words_of
from fl_sim.auditing.subject import ALPHA, FEWEST, Subject
from fl_sim.checkpoints import Finding, Level

STEPS = 8.0
"""Standard score by which codes may fall more from one block of ``2, 4, ... 32`` codes to the next
than within the blocks; normal and uniform weights quantised by tensor or by row reached 2.6 in
10,000 to a million codes, random low bits reach 8 to 90."""

SMOOTH = 4.0
"""Mean square of standardised second differences of frequencies, without the largest eight: smooth
densities have 0.8 to 1.1, and the low bits of text or pixels far more."""

_DEPTHS = range(1, 6)
_SAMPLE = 1 << 16
_LOW_ENTROPY = 7.5  # bits a byte; random bytes of a sample have 7.99
_FEWEST_WHOLE = 256
_FEWEST_FLAT = 16_384
_FEWEST_CODE = 10
_NARROWEST = 3.0  # deviation of codes from which their lowest two bits are fair coins
_EDGE = 118  # where the observer's clipping piles codes up

Counts = NDArray[np.float64]


def check_integers(subject: Subject) -> list[Finding]:
    """Judge entries of integers that the architecture does not explain, and quantised weights.

    Small ones are searched for text and signatures with the content; counts of batches are judged
    with the buffers.
    """
    findings: list[Finding] = []
    quantised: list[str] = []
    for name, tensor in subject.state.items():
        expected = subject.own.get(name)
        explained = expected is not None and expected.dtype == tensor.dtype
        if is_real(tensor) or tensor.dtype == torch.bool or tensor.numel() < _FEWEST_WHOLE:
            continue
        if words_of(tensor).itemsize == 1 and tensor.dim() >= 2:
            enough = tensor.numel() >= FEWEST  # fewer tell nothing
            found = [*_codes(name, signed_codes(tensor))] if enough else []
            quantised += [] if found else [name]
            findings += found
        elif not explained:
            findings.append(_whole(name, tensor))
    if quantised:
        what = f"{len(quantised)} tensors of bytes are distributed as quantised weights are."
        only = quantised[0] if len(quantised) == 1 else None
        findings.append(Finding("integers", "note", what, only, {"tensors": len(quantised)}))
    return findings


def signed_codes(tensor: torch.Tensor) -> NDArray[np.int8]:
    """Return bytes as codes around zero; unsigned ones have their zero point at 128 as a rule."""
    words = words_of(tensor)
    unsigned = tensor.dtype in (torch.uint8, torch.quint8)
    return (words ^ np.uint8(128) if unsigned else words).view(np.int8)


def steps_of_codes(counts: Counts) -> tuple[float, int]:
    """Return how much more frequencies fall between blocks of codes than within, and the bits.

    Args:
        counts: of the codes from -128 to 127, ``[256]``.

    Returns:
        The largest standard score of any block size, and that size's base-2 logarithm.
    """
    falls = np.diff(counts) / np.sqrt(np.maximum(counts[1:] + counts[:-1], 1))
    places = np.arange(1, 256)
    falls *= np.sign(_centre(counts) - places)
    distance = np.abs(places - _centre(counts))
    kept = (np.minimum(counts[1:], counts[:-1]) >= _FEWEST_CODE) & (distance > 3)
    kept &= np.abs(places - 128) < _EDGE
    best = (0.0, 0)
    for depth in _DEPTHS:
        between = kept & (places % 2**depth == 0)
        within = kept & ~between
        if min(between.sum(), within.sum()) < 4:
            continue
        one, other = float(falls[between].mean()), float(falls[within].mean())
        error = np.sqrt(1 / between.sum() + 1 / within.sum())
        if abs(other) < 0.35 * one:
            best = max(best, ((one - other) / error, depth))
    return best


def roughness_of_codes(counts: Counts) -> float:
    """Return the mean square of standardised second differences, without the largest eight."""
    around = (counts[:-2] + counts[2:]) / 2
    scores = (counts[1:-1] - around) ** 2 / np.maximum(counts[1:-1] + around / 2, 1)
    places = np.arange(1, 255)
    kept = (counts[1:-1] >= _FEWEST_CODE) & (np.abs(places - _centre(counts)) > 3)
    kept &= np.abs(places - 128) < _EDGE
    own = np.sort(scores[kept])[:-8]
    return float(own.mean()) if len(own) >= 8 else 0.0


def _centre(counts: Counts) -> int:
    """Return the place of the zero point, where pruning and small weights pile up."""
    return int(counts[64:192].argmax()) + 64


def _codes(name: str, codes: NDArray[np.int8]) -> Iterator[Finding]:
    """Judge bytes that may be quantised weights; nothing is said of such as look like them."""
    counts = np.bincount(codes.astype(np.int16) + 128, minlength=256).astype(np.float64)
    flat = float(stats.chisquare(counts).pvalue)
    if flat > 1e-3 and len(codes) >= _FEWEST_FLAT:
        what = "All its bytes are equally frequent, as in encrypted or compressed content."
        yield Finding("integers", "suspicious", what, name, {"p": flat})
        return
    score, depth = steps_of_codes(counts)
    rough = roughness_of_codes(counts)
    if score > STEPS:
        what = (
            f"Its codes fall in steps of {2**depth}: their lowest {depth} bits were written, for "
            f"quantised weights are smooth."
        )
        yield Finding("integers", "carries", what, name, {"score": score, "bits": float(depth)})
    elif rough > SMOOTH or len(np.unique(codes[:_SAMPLE])) < 8:
        what = "Its bytes are not distributed as quantised weights: text, plain pixels or code."
        yield Finding("integers", "suspicious", what, name, {"roughness": rough})
    else:
        yield from _low_bits(name, codes, counts)


def _low_bits(name: str, codes: NDArray[np.int8], counts: Counts) -> Iterator[Finding]:
    """Test the lowest two bits: with codes this wide they are fair coins by nature."""
    first = (_centre(counts) - 128) // 4 * 4
    own = codes[(codes < first) | (codes >= first + 4)].view(np.uint8)
    if len(own) < FEWEST or codes.std() < _NARROWEST:
        return
    odd = {}
    for plane in range(2):
        # Clipping at the edges takes half a code or two of 256 from one side.
        scores = plane_statistics(own, plane)
        by_nature = np.sqrt(len(own)) / 64, np.sqrt(len(own)) / 2048
        for what, score, free in zip(("ones", "neighbours"), scores, by_nature, strict=True):
            if 2 * stats.norm.sf(max(0.0, abs(score) - free)) * 1000 < ALPHA:
                odd[f"bit {plane}, {what}"] = score
    if odd:
        what = "The low bits of its codes are no fair coins, as quantised weights' are."
        yield Finding("integers", "carries", what, name, odd)


def _whole(name: str, tensor: torch.Tensor) -> Finding:
    """Say what a large entry of integers is: networks here have no such thing."""
    content = words_of(tensor).view(np.uint8)[:_SAMPLE]
    bits = entropy(content)
    kind = "text, plain pixels or code" if bits < _LOW_ENTROPY else "compressed or encrypted"
    what = f"An entry of {tensor.numel()} integers, whose bytes look like {kind} content."
    narrow = words_of(tensor).itemsize == 1
    level: Level = "suspicious" if bits >= _LOW_ENTROPY or narrow else "note"
    return Finding("integers", level, what, name, {"entropy, bits a byte": bits})
