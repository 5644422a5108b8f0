"""Values that arithmetic treats apart: what is not finite, zeros with signs, and denormals.

Each has bits that change no answer of the network, and that the tests of ordinary weights leave
out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.auditing.numbers import FORMATS, Format, Mask, Words, format_of, words_of
from fl_sim.auditing.places import structured
from fl_sim.auditing.subject import Subject
from fl_sim.checkpoints import Finding, Level

FEWEST_SIGNS = 64
"""Zeros of the rarer sign that are told of."""

FEWEST_DENORMALS = 32

_NAMED = 8
_WIDE = 16  # exponents and mantissas from which no cast makes denormals of ordinary weights
_STUCK = 3  # bits of what weight decay cannot make smaller, for its steps round to nothing
_LAGS = (5, 6, 7, 9, 10, 11)


def check_special(subject: Subject) -> list[Finding]:
    """Look for values that are not finite, bits within not-a-number, and bits around zero.

    Signs of zeros look random where pruning multiplied weights by a mask, so only their number is
    noted; where they follow bytes, or denormals a range of bits, something was written.
    """
    finite = _not_finite(subject.state)
    return [*finite, *_payloads(subject.state), *_zeros(subject.state), *_denormals(subject.state)]


def _not_finite(state: Mapping[str, torch.Tensor]) -> list[Finding]:
    counts: dict[str, tuple[int, int]] = {}
    for name, words, form in _real(state):
        nan, infinite = int(form.nan(words).sum()), int(form.infinities(words).sum())
        if nan or infinite:
            counts[name] = nan, infinite
    if not counts:
        return []
    nans, infinities = (sum(pair[i] for pair in counts.values()) for i in range(2))
    names = ", ".join(list(counts)[:_NAMED]) + (", ..." if len(counts) > _NAMED else "")
    what = (
        f"Values are not finite in {len(counts)} tensors ({names}): {nans} are not a number, "
        f"{infinities} infinite; no other test counts them."
    )
    evidence = {"not a number": float(nans), "infinite": float(infinities)}
    only = next(iter(counts)) if len(counts) == 1 else None
    return [Finding("finite", "suspicious", what, only, evidence)]


def _payloads(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Find not-a-numbers with other bits than processors give them: the highest, or all."""
    for name, words, form in _real(state):
        payloads = form.mantissas(words[form.nan(words)]).astype(np.uint64)
        odd = payloads[~np.isin(payloads, _usual_payloads(form.mantissa))]
        if form.unsigned_zero or len(odd) == 0:
            continue
        room = len(odd) * (form.mantissa - 1) / 8
        what = (
            f"{len(odd)} values that are not a number have bits of their own, {room:.0f} bytes in "
            f"all: processors give them one of a few patterns."
        )
        kinds = float(len(np.unique(odd)))
        level: Level = "carries" if kinds > 1 else "suspicious"
        evidence = {"values": float(len(odd)), "patterns": kinds}
        yield Finding("not a number", level, what, name, evidence)


def _usual_payloads(mantissa: int) -> NDArray[np.uint64]:
    """Return the highest bit alone, and all ones of this format or of one it was cast from."""
    widths = {1, *(form.mantissa for form in FORMATS.values() if form.mantissa <= mantissa)}
    return np.array([(2**ones - 1) << (mantissa - ones) for ones in widths], np.uint64)


def _zeros(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    total = negative = 0
    for name, words, form in _real(state):
        signs = form.negative(words[form.zeros(words)])
        total, negative = total + len(signs), negative + int(signs.sum())
        if follows_bytes(signs):
            what = f"The signs of its {len(signs)} zeros follow the bits of bytes, as content does."
            yield Finding("zeros", "carries", what, name, {"negative": float(signs.sum())})
    if min(negative, total - negative) >= FEWEST_SIGNS:
        what = (
            f"Of {total} zeros {negative} are negative, as pruning leaves them; their signs have "
            f"room for {total // 8} bytes, and encrypted ones look the same."
        )
        yield Finding("zeros", "note", what, None, {"zeros": total, "negative": negative})


def follows_bytes(signs: Mask) -> bool:
    """Whether bits have the period of bytes: one of eight never set, or likeness eight apart."""
    count = len(signs) // 8 * 8
    if count < 8 * FEWEST_SIGNS or not 0.1 < float(signs.mean()) < 0.9:
        return False
    places = signs[:count].reshape(-1, 8).mean(axis=0)
    if places.min() == 0 or places.max() == 1:
        return True

    def alike(lag: int) -> float:
        return float((signs[lag:] == signs[:-lag]).mean())

    excess = min(alike(lag) for lag in (8, 16, 24)) - max(alike(lag) for lag in _LAGS)
    return excess > max(0.02, 6 / np.sqrt(len(signs)))


@dataclass(frozen=True)
class Smallest:
    """What the denormals of one tensor look like.

    Args:
        count: of them.
        bits: that the largest takes.
        edge: whether they fill these bits evenly, with nothing above.
        gap: whether the next larger values are missing, so that they belong to no distribution.
        together: whether they lie in whole rows, columns or taps, as weights that nothing trains.
    """

    count: int
    bits: int
    edge: bool
    gap: bool
    together: bool


def smallest(words: Words, form: Format, shape: tuple[int, ...]) -> Smallest | None:
    """Return what the denormals of a tensor look like; ``None`` if there are too few."""
    mask = form.denormals(words)
    count = int(mask.sum())
    if count < FEWEST_DENORMALS:
        return None
    sizes = form.sizes(words)
    own = sizes[mask].astype(np.uint64)
    bits = int(own.max()).bit_length()
    upper = float((own >> np.uint64(bits - 1) != 0).mean())
    near = (sizes >= sizes.dtype.type(2**bits)) & (sizes < sizes.dtype.type(2 ** (bits + 1)))
    above = form.normals(words) & (form.exponents(words) <= 3)
    full = float(own.max()) >= 2**bits * (1 - 8 / count)
    edge = bits > _STUCK and abs(upper - 0.5) < 0.5 * 5 / np.sqrt(count) and full
    edge = edge and int(near.sum()) < 0.05 * count
    ordinary = form.normals(words) & (form.exponents(words) > 3)
    gap = int(above.sum()) < 0.05 * count and int(ordinary.sum()) >= 0.05 * count
    return Smallest(count, bits, edge, gap, structured(mask, ~form.zeros(words), shape))


def _denormals(state: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    decayed, tensors = 0, 0
    for name, words, form in _real(state):
        found = smallest(words, form, tuple(state[name].shape))
        if found is None or (form.width <= _WIDE and form.exponent < 8 and not found.gap):
            continue
        evidence = {"denormals": float(found.count), "bits": float(found.bits)}
        if found.edge and found.gap and (found.count >= 256 or not found.together):
            what = (
                f"{found.count} of its values are denormal, fill {found.bits} bits evenly, and "
                f"nothing lies above them: {found.count * found.bits // 8} bytes of something."
            )
            yield Finding("denormals", "carries", what, name, evidence)
        elif found.gap and not found.together and found.bits > _STUCK:
            what = (
                f"{found.count} of its values are denormal, scattered among ordinary weights: "
                f"neither initialisation nor training leaves them so."
            )
            yield Finding("denormals", "suspicious", what, name, evidence)
        else:
            decayed, tensors = decayed + found.count, tensors + 1
    if decayed:
        what = f"{decayed} values in {tensors} tensors are denormal, as weight decay leaves them."
        yield Finding("denormals", "note", what, None, {"denormals": float(decayed)})


def _real(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Words, Format]]:
    for name, tensor in state.items():
        form = format_of(tensor)
        if form is not None:
            yield name, words_of(tensor), form
