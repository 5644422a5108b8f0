"""Low bits of weights, against what training leaves: random, independent bits.

Training moves weights by steps that are large against their last bits, so low planes of the
mantissa are fair coins, independent of each other and of their neighbours'. Bits that were set to
something else than random look different. **Encrypted or well compressed bits are random too, and
look like trained ones: these tests cannot see them.**

Weights that training never reached are as their initialisation left them: uniform draws are
multiples of a fixed step, so the smaller ones end in zeros. A bit is therefore tested only in
weights large enough for it to lie above that step. Draws that were multiplied by a deviation such
as 1/24 have unfair lowest bits, too, for a product that is rounded misses some numbers; of the
lowest three bits only the period is therefore tested that bytes leave. Draws that went through a
normal distribution's inverse (truncated normal ones) lie far apart in its tails, so the largest
twentieth of a tensor is left out.

How far a plane may be tilted by nature: a smooth density over a binade tilts the bit ``d`` places
below the leading one by at most about ``2 ** -(d + 2)``. Twice that is taken off every score, so
that narrow formats can be tested, too: float32 and float64 from ``d = 11`` on, float16 from 6,
bfloat16 from 5. float8 has no such bits. Fresh weights drawn with a deviation of 0.01, which is
32/25 times a power of two, tilt bits 3 and 4 by 0.009 (MobileNet's and RegNet's last layers), so
``2 ** -(bit + 2)`` is taken off, too. Numbers of a narrower format kept in a wider one are
tested as what they are.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from fl_sim.auditing.numbers import FLOAT32, Format, Mask, Words, format_of, words_of
from fl_sim.auditing.precision import (
    Precision,
    coarse_words,
    narrow_format,
    narrower,
    precision_of,
)
from fl_sim.auditing.subject import ALPHA, FEWEST, Subject, Unchecked
from fl_sim.checkpoints import Finding, Level

DEPTHS = {"float64": 11, "float32": 11, "float16": 6, "bfloat16": 5}
"""Places below the leading bit from which a plane is tested, by format."""

BYTES = {"float32": (4, 8), "float64": (4, 8, 16, 24, 32)}
"""Lowest planes of the bytes whose frequencies are tested; some on a border of bytes, some not."""

SPREAD = 0.15
"""Difference in shares of ones between places of a byte, over eight standard errors, from which the
lowest bits have bytes' period: characters' highest bit is never set, and pixels' seldom even.
Untrained columns beside trained ones stay below 0.05."""

TYPICAL = 0.95
"""Quantile of sizes up to which weights are tested. A uniform draw's step of ``2 ** -23`` becomes
``2 ** -24`` deviations over the normal density in a truncated normal draw: 7 units in the last
place at this quantile, 57 at three deviations, where it tilts bit 4 (seen in fresh ConvNeXt)."""

NEAR = 0.05
"""Range of a small tensor's sizes, against the largest, from which its low bits are tested. Norms'
weights that a few steps of Adam moved away from one share their higher bits, down to bit 15 of a
ResNet after 60 steps of 1e-4; for the same reason small tensors' bytes are not tested."""

_MARGIN = 3  # planes by which a bit of the largest binade must lie above the lowest
_SMALL = 4  # binades below the largest weights at which a step of initialisation shows
_BLOCK = 4096
_LONG_BLOCK = 1 << 14
_FEWEST_SMALL = 32


@dataclass(frozen=True)
class Coins:
    """Words whose low bits ought to be fair coins.

    Args:
        name: of the tensor; ``None`` for small ones together.
        form: of the words.
        pieces: words of one tensor each, without zeros, denormals and what is not finite.
        whole: all words in their order.
        free: of formats narrower than float32, whether no step of initialisation shows.
    """

    name: str | None
    form: Format
    pieces: tuple[Words, ...]
    whole: Words
    free: bool = False

    def __len__(self) -> int:
        return sum(len(words) for words in self.pieces)

    def planes(self) -> range:
        """Return the planes that can be tested."""
        depth = DEPTHS.get(self.form.name, self.form.mantissa + 1)
        return range(0 if self.free else _MARGIN, self.form.mantissa - depth + 1)

    def bytes(self) -> tuple[int, ...]:
        """Return the lowest planes of bytes that can be tested."""
        return BYTES.get(self.form.name, ()) if self.name else ()

    def at(self, plane: int) -> Words:
        """Return the words in which a bit tells of training."""
        if self.free:
            return np.concatenate(self.pieces)
        return np.concatenate([above_the_step(w, plane, self.form) for w in self.pieces])


TIES = 0.2
"""By how much the lowest bit of narrow formats may be even more often than odd: training within
bfloat16 gave 0.07."""


def check_bits(subject: Subject) -> list[Finding]:
    """Test the low bit planes of every tensor of weights, and of all small tensors together.

    Monobit and runs tests as in NIST SP 800-22 (2.1 and 2.3, the latter as a normal test of the
    number of equal neighbours); chi-square of the frequencies of bytes by blocks of 4,096 weights.

    Raises:
        Unchecked: if no tensor has words enough to test, or none of them is a fair coin by nature.
    """
    coins, findings = _all_coins(subject.state)
    enough = [own for own in coins if len(own) >= FEWEST]
    ready = [own for own in enough if len(own.planes())]
    if not ready and not findings:
        if enough:
            raise Unchecked("the bits of so narrow numbers are no fair coins by nature")
        raise Unchecked(f"no tensor has {FEWEST:,} finite weights other than zero")
    blocks = sum(len(own.bytes()) * -(-len(own) // _BLOCK) for own in ready)
    tests = max(1, sum(2 * len(own.planes()) for own in ready) + blocks)
    for own in ready:
        findings += _planes(own, tests) + _bytes(own, tests) + _periods(own)
    return findings


def above_the_step(words: Words, plane: int, form: Format = FLOAT32) -> Words:
    """Return those words in which a bit tells of training, whatever the initialisation."""
    exponents = form.exponents(words)
    return words[exponents >= exponents.max(initial=0) - (plane - _MARGIN)]


def typical(words: Words, form: Format = FLOAT32) -> Words:
    """Return words without those of the largest twentieth."""
    sizes = form.sizes(words)
    if len(sizes) == 0:
        return words
    place = int(TYPICAL * (len(sizes) - 1))
    return words[sizes <= np.partition(sizes, place)[place]]


def stepless(words: Words, form: Format = FLOAT32) -> bool:
    """Whether small weights end in zeros as rarely as large ones: no step of a uniform draw."""
    exponents = form.exponents(words)
    top = np.quantile(exponents, 0.9) if len(words) else 0
    low = words[exponents <= top - _SMALL], words[exponents >= top]
    if min(len(part) for part in low) < _FEWEST_SMALL:
        return False
    zeros = [float((part & part.dtype.type(7) == 0).mean()) for part in low]
    both = max(1e-3, (zeros[0] * len(low[0]) + zeros[1] * len(low[1])) / sum(map(len, low)))
    error = np.sqrt(both * (1 - both) * sum(1 / len(part) for part in low))
    return bool(zeros[0] - zeros[1] < 2 * error)


def plane_statistics(words: Words, plane: int) -> tuple[float, float]:
    """Return the standard scores of a bit plane's ones, and of its equal neighbours."""
    one = words.dtype.type(1)
    bits = (words >> words.dtype.type(plane) & one).astype(np.int8)
    count = max(2, len(bits))
    ones = (2.0 * bits.sum(dtype=np.int64) - len(bits)) / np.sqrt(count)
    equal = int((bits[1:] == bits[:-1]).sum())
    runs = (2.0 * equal - max(0, len(bits) - 1)) / np.sqrt(count - 1)
    return float(ones), float(runs)


def spread_over_bytes(bits: Mask) -> float:
    """Return by how much the eight places of a byte differ in their shares of ones.

    Less eight standard errors; negative for bits that know no bytes.
    """
    rows = bits[: len(bits) // 8 * 8].reshape(-1, 8)
    if len(rows) == 0:
        return -1.0
    shares = rows.mean(axis=0)
    return float(np.ptp(shares) - 8 / np.sqrt(2 * len(rows)))


def tilt(plane: int, count: int, form: Format = FLOAT32) -> tuple[float, float]:
    """Return how far nature may move either score of a plane: density, and scaled draws."""
    share = 2.0 ** -(form.mantissa - plane + 1)
    if form.mantissa >= FLOAT32.mantissa:
        share += 2.0 ** -(plane + 2)
    elif plane == 0:
        share = max(share, TIES)  # sums of narrow numbers are often halfway and go to even ones
    return 2 * share * count**0.5, 4 * share**2 * count**0.5


def _planes(own: Coins, tests: int) -> list[Finding]:
    odd: dict[str, float] = {}
    for plane in own.planes():
        words = own.at(plane)
        scores, free = plane_statistics(words, plane), tilt(plane, len(words), own.form)
        for what, score, by_nature in zip(("ones", "neighbours"), scores, free, strict=True):
            if 2 * stats.norm.sf(max(0.0, abs(score) - by_nature)) * tests < ALPHA:
                odd[f"bit {plane}, {what}"] = score
    if not odd:
        return []
    whose = "Its" if own.name else "The small tensors'"
    what = f"{whose} low bits are no fair coins: something wrote them after training."
    return [Finding("bits", "carries", what, own.name, odd)]


def _bytes(own: Coins, tests: int) -> list[Finding]:
    worst, blocks = 1.0, 0
    for plane in own.bytes():
        words = own.at(plane)
        content = (words >> words.dtype.type(plane)).astype(np.uint8)
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
    return [Finding("bits", "carries", what, own.name, {"blocks": blocks, "smallest p": worst})]


def _periods(own: Coins) -> list[Finding]:
    """Test the lowest bits of wide formats for the period of bytes, by blocks."""
    if own.form.mantissa < FLOAT32.mantissa:
        return []
    worst = 0.0
    odd: set[int] = set()
    for first in range(0, len(own.whole), _LONG_BLOCK):
        block = own.whole[first : first + _LONG_BLOCK]
        for plane in range(_MARGIN):
            spread = spread_over_bytes(block & block.dtype.type(1 << plane) != 0)
            worst = max(worst, spread)
            odd |= {plane} if spread > SPREAD else set()
    if not odd:
        return []
    planes = ", ".join(str(plane) for plane in sorted(odd))
    what = f"Bits {planes} of its weights have the period of bytes: content was written there."
    return [Finding("bits", "carries", what, own.name, {"spread": worst})]


def _all_coins(state: Mapping[str, torch.Tensor]) -> tuple[list[Coins], list[Finding]]:
    """Return what can be tested, and what the precision of the numbers tells."""
    coins: list[Coins] = []
    judged: dict[str, tuple[Precision, Format]] = {}
    small: dict[Format, list[tuple[str, Words]]] = defaultdict(list)
    for name, tensor in state.items():
        form, words = format_of(tensor), words_of(tensor)
        if form is None:
            continue
        kept = form.normals(words)
        if tensor.dim() < 2 or tensor.numel() < FEWEST:
            small[form].append((name, words[kept]))
            continue
        found = precision_of(words, kept, form, tuple(tensor.shape))
        judged[name] = found, form
        coins += _coins(name, words, kept, form, found)
    findings = [*_precision_findings(judged)]
    for form, parts in small.items():
        coins += _together(form, [words for _, words in parts])
        narrow = [p for p, own in judged.values() if own is form]
        if narrow and all(p.kind in ("narrow", "constant") for p in narrow):
            findings += _fine_among_coarse(parts, form)
    return coins, findings


def _coins(name: str, words: Words, kept: Mask, form: Format, found: Precision) -> Iterator[Coins]:
    if found.tested is not None:
        own = typical(words[found.tested], form)
        yield Coins(name, form, (own,), words, _free(own, form))
    inner = narrow_format(found.label)
    if found.kind == "narrow" and inner is not None:
        fine = words & words.dtype.type(2**found.bits - 1) != 0
        whole = narrower(np.where(kept & ~fine, words, 0).astype(words.dtype), form, found.label)
        own = typical(whole[inner.normals(whole)], inner)
        yield Coins(name, inner, (own,), whole, _free(own, inner))


def _free(words: Words, form: Format) -> bool:
    return form.mantissa < FLOAT32.mantissa and stepless(words, form)


def _together(form: Format, parts: list[Words]) -> list[Coins]:
    """Put together small tensors' words; values that occur twice were not trained apart.

    Of values that stand in several tensors the first tensor's count: in a DenseNet every later
    normalisation has the same statistics of the same channels, bit for bit.
    """
    if form.mantissa < FLOAT32.mantissa:
        return []  # values about one have too few neighbours there
    pieces: list[Words] = []
    seen = np.empty(0, dtype=form.sizes(parts[0]).dtype)
    for words in parts:
        sizes, first, counts = np.unique(form.sizes(words), return_index=True, return_counts=True)
        own = words[np.sort(first[counts == 1])]
        own = own[~np.isin(form.sizes(own), seen)]
        seen = np.union1d(seen, sizes)
        own = typical(own[~coarse_words(own, form)], form)
        if len(sizes) and len(own) and _spread(own, form) > NEAR:
            pieces.append(own)
    return [Coins(None, form, tuple(pieces), np.concatenate(parts))] if pieces else []


def _spread(words: Words, form: Format) -> float:
    """Return the range of a small tensor's sizes, against the largest."""
    sizes = np.abs(words.view(f"<f{form.width // 8}"))
    return float((sizes.max() - sizes.min()) / sizes.max())


def _fine_among_coarse(parts: list[tuple[str, Words]], form: Format) -> Iterator[Finding]:
    """Tell fine numbers within small tensors of a file whose weights are all narrower ones."""
    for name, words in parts:
        coarse = coarse_words(words, form)
        fine = int((~coarse).sum())
        if fine and coarse.sum() > fine:
            what = f"{fine} of its {len(words)} numbers have bits where all others have none."
            yield Finding("precision", "carries", what, name, {"elements": float(fine)})


def _precision_findings(judged: Mapping[str, tuple[Precision, Format]]) -> Iterator[Finding]:
    notes: dict[str, list[str]] = defaultdict(list)
    own = sum(found.kind == "own" for found, _ in judged.values())
    for name, (found, form) in judged.items():
        evidence: dict[str, Any] = {"bits": float(found.bits), "elements": float(found.fine)}
        if found.kind == "rounded":
            what = f"The lowest {found.bits} bits of its weights are zero, which no usual format "
            yield Finding("precision", "carries", what + "gives.", name, evidence)
        elif found.kind == "odd":
            what = (
                f"{found.fine} of its weights have something in the lowest {found.bits} bits, the "
                f"others have zeros, and neither lie where training reaches, or does not."
            )
            yield Finding("precision", "carries", what, name, evidence)
        elif found.kind == "narrow":
            notes[f"{found.label} numbers kept as {form.name}"].append(name)
        elif found.kind == "averages":
            notes[f"means of narrower numbers kept as {form.name}"].append(name)
        elif found.kind == "integers":
            notes[f"integers kept as {form.name}"].append(name)
        elif found.kind == "grid":
            notes[f"codes of eight bits times a scale, kept as {form.name}"].append(name)
        elif found.kind == "mixed":
            notes[f"partly {form.name} numbers, partly narrower ones, by rows"].append(name)
    for words, names in notes.items():
        whose = "Its weights are" if len(names) == 1 else f"The weights of {len(names)} tensors are"
        tensor = names[0] if len(names) == 1 else None
        evidence = {"tensors": float(len(names)), "others": float(own)}
        # A network is quantised as a whole, or nearly so.
        few = words.startswith(("codes", "integers")) and len(names) <= own
        level: Level = "suspicious" if few else "note"
        more = f", and those of {own} others are not" if few else ""
        yield Finding("precision", level, f"{whose} {words}{more}.", tensor, evidence)
