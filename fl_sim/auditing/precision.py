"""Numbers of a narrower format kept in a wider one, and bits where such numbers have none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_sim.auditing.numbers import FLOAT32, FORMATS, Format, Mask, Words
from fl_sim.auditing.places import structured

KEPT: Mapping[str, Mapping[int, str]] = {
    "float64": {29: "float32", 42: "float16", 45: "bfloat16"},
    "float32": {13: "float16", 16: "bfloat16", 20: "float8_e4m3fn", 21: "float8_e5m2"},
    "float16": {7: "float8_e4m3fn", 8: "float8_e5m2"},
    "bfloat16": {4: "float8_e4m3fn", 5: "float8_e5m2"},
}
"""Low bits that are zero when numbers of the named format are kept in the key's."""

COARSE = {"float64": 16, "float32": 13}
"""Low bits that are zero in narrower numbers, and, in float64, in means of a few of them; by chance
in one word of 65,536 or 8,192."""

MIXED = 0.01
"""Share of coarse words from which a tensor is a mixture of coarse and fine ones. By chance it is
1e-4 at most; uniform initialisation, whose draws are multiples of a step, gives as little."""

_NEARLY = 0.99
_FEW = 0.25
_NEAR = 5
_SUMMED = 3  # further bits of the mean of two, four or eight numbers
_ALWAYS = 0.75
_FEWEST_ROW = 16
_CODES = 256
_SMALLEST = 12
_DEEP = 0xFF
_LARGEST = 2**16
_FEWEST = 64

Kind = Literal[
    "own", "constant", "narrow", "averages", "integers", "mixed", "odd", "rounded", "grid"
]


@dataclass(frozen=True)
class Precision:
    """How many of their bits numbers use.

    Args:
        kind: ``"own"``: all; ``"constant"``: one size only; ``"narrow"``: those of ``label``;
            ``"averages"``: few more than a narrower format's; ``"integers"``: small ones;
            ``"mixed"``: rows or taps of either kind, as training leaves them that does not reach
            all; ``"odd"``: a few have bits where the others have none; ``"rounded"``: as no format;
            ``"grid"``: those of eight-bit codes, times a scale.
        bits: low bits that are zero in nearly all words.
        label: the narrower format's name.
        fine: words with bits where the others have none.
        tested: which words have bits of their own.
    """

    kind: Kind
    bits: int = 0
    label: str = ""
    fine: int = 0
    tested: Mask | None = None


def rounded_to(words: Words, form: Format = FLOAT32) -> int | None:
    """Return how many low bits are zero in nearly all words; ``None`` if that is fewer than 8.

    Of narrow formats, fewer than half of the mantissa.
    """
    bits = 0
    while bits < form.mantissa:
        low = words.dtype.type(2 ** (bits + 1) - 1)
        if np.mean(words & low == 0) < _NEARLY:
            break
        bits += 1
    return bits if bits >= min(8, (form.mantissa + 1) // 2) else None


def precision_of(words: Words, kept: Mask, form: Format, shape: tuple[int, ...]) -> Precision:
    """Return how many of their bits a tensor's numbers use.

    Args:
        words: of all elements, in their order.
        kept: those with bits to judge: neither zero nor denormal nor infinite.
        form: of the words.
        shape: of the tensor.
    """
    own = words[kept]
    if len(own) == 0 or bool((form.sizes(own) == form.sizes(own[:1])).all()):
        return Precision("constant")
    bits = rounded_to(own, form) if len(own) >= _FEWEST else None
    if bits is not None:
        fine = kept & (words & words.dtype.type(2**bits - 1) != 0)
        if _reach(words[fine], bits) > _FEW and not structured(fine, kept, shape):
            return Precision("odd", bits, fine=int(fine.sum()))
        return _rounded(own[~fine[kept]], bits, form)
    coarse = coarse_words(words, form) & kept
    deep = kept & (words & words.dtype.type(_DEEP) != 0)
    if on_grid(words, form, shape):
        return Precision("grid")
    if form.name not in COARSE or coarse.sum() < MIXED * len(own) or not deep.any():
        return Precision("own", tested=kept & ~coarse)
    if structured(deep, coarse | deep, shape):
        return Precision("mixed", COARSE[form.name], fine=int(deep.sum()), tested=deep)
    few = coarse.sum() < len(own) / 2
    bits, fine = COARSE[form.name], int(deep.sum())
    return Precision("odd", bits, fine=fine, tested=kept if few else deep)


def coarse_words(words: Words, form: Format) -> Mask:
    """Return which words have no bits below those of narrower numbers."""
    bits = COARSE.get(form.name)
    if bits is None:
        return np.zeros(len(words), np.bool_)
    return words & words.dtype.type(2**bits - 1) == 0


def narrower(words: Words, form: Format, label: str) -> Words:
    """Return the words that numbers have in a narrower format; they must be such numbers."""
    if label == "bfloat16":
        single = narrower(words, form, "float32") if form.width == 64 else words
        return np.asarray(single >> single.dtype.type(16)).astype(np.uint16)
    width = {"float16": 2, "float32": 4}[label]
    values = words.view(f"<f{form.width // 8}").astype(f"<f{width}")
    found: Words = values.view(f"<u{width}")
    return found


def narrow_format(label: str) -> Format | None:
    """Return a narrower format with a mantissa worth a test of its own."""
    if label not in ("float32", "float16", "bfloat16"):
        return None
    return next(form for form in FORMATS.values() if form.name == label)


def on_grid(words: Words, form: Format, shape: tuple[int, ...]) -> bool:
    """Whether numbers are quantised weights: codes of eight bits times a step a tensor or a row.

    Plain pixels have such steps, too, but only one sign.
    """
    return codes_on_grid(words, form, shape) is not None


def codes_on_grid(words: Words, form: Format, shape: tuple[int, ...]) -> NDArray[np.int16] | None:
    """Return the codes of quantised weights kept as floats; ``None`` where they are none."""
    if form.width not in (16, 32, 64) or form.name == "bfloat16":
        return None
    values = words.view(f"<f{form.width // 8}").astype(np.float64)
    if not np.isfinite(values).all() or values.min() >= 0 or values.max() <= 0:
        return None
    parts = [values.reshape(1, -1)]
    rows = shape[0] if shape else 1
    if len(values) % max(1, rows) == 0 and len(values) // rows >= _FEWEST_ROW:
        parts.append(values.reshape(rows, -1))
    for part in parts:
        codes = [_codes(row) for row in part]
        if all(own is not None for own in codes):
            return np.concatenate([own for own in codes if own is not None])
    return None


def _codes(values: NDArray[np.float64]) -> NDArray[np.int16] | None:
    sizes = np.abs(values[values != 0])
    if len(sizes) == 0:
        return np.zeros(len(values), np.int16)
    for smallest in range(1, _SMALLEST + 1):  # steps that the smallest size may be
        codes = values * (smallest / float(sizes.min()))
        if np.abs(codes).max() > _CODES:
            return None
        whole = np.rint(codes)
        if bool((np.abs(codes - whole) < 1e-3 * smallest).all()):
            return whole.astype(np.int16)
    return None


def _reach(fine: Words, bits: int) -> float:
    """Return the share of words that reach far below the others' last bit.

    Of means of narrower numbers ever fewer words have ever lower bits; what was written has most.
    """
    if len(fine) == 0:
        return 0.0
    low = fine.dtype.type(2 ** max(1, bits - _NEAR) - 1)
    return float((fine & low != 0).mean())


def _rounded(own: Words, bits: int, form: Format) -> Precision:
    label = _label(bits, form)
    if label:
        return Precision("narrow", bits, label)
    if form.width >= 32:
        values = np.abs(own.view(f"<f{form.width // 8}"))
        if bool((values <= _LARGEST).all()) and bool((values == np.floor(values)).all()):
            return Precision("integers", bits)
    first = float((own >> own.dtype.type(bits) & own.dtype.type(1)).mean())
    summed = any(0 < zero - bits <= _SUMMED for zero in KEPT.get(form.name, {}))
    if summed and first < _ALWAYS:  # a bit that is always set was put there
        return Precision("averages", bits)
    return Precision("rounded", bits)


def _label(bits: int, form: Format) -> str:
    label = KEPT.get(form.name, {}).get(bits, "")
    if not label and form.name == "float64" and bits >= 29:
        inner = bits - 29
        return "float32" if inner < 8 else KEPT["float32"].get(inner, "")
    return label
