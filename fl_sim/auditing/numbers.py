"""How numbers are kept: words, and the fields of a floating-point word, whatever the dtype."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]
"""Elements as unsigned integers of their own width, in the order of the elements."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Format:
    """A floating-point format: sign, exponent and mantissa from the highest bit to the lowest.

    Args:
        name: as torch has it.
        width: bits of a word.
        exponent: bits of the exponent.
        mantissa: stored bits of the mantissa.
        infinite: whether it has infinities; then an exponent of ones is infinite or not a number.
        unsigned_zero: whether the negative zero is the only not-a-number (torch's "fnuz").
    """

    name: str
    width: int
    exponent: int
    mantissa: int
    infinite: bool = True
    unsigned_zero: bool = False

    def exponents(self, words: Words) -> NDArray[np.int16]:
        """Return the exponents as stored, from 0 for zeros and denormals."""
        field = (words >> words.dtype.type(self.mantissa)).astype(np.uint16)
        return (field & np.uint16(2**self.exponent - 1)).astype(np.int16)

    def mantissas(self, words: Words) -> Words:
        """Return the stored bits of the mantissas."""
        return words & words.dtype.type(2**self.mantissa - 1)

    def sizes(self, words: Words) -> Words:
        """Return the words without their signs."""
        return words & words.dtype.type(2 ** (self.width - 1) - 1)

    def negative(self, words: Words) -> Mask:
        """Return which words have the sign bit."""
        return words >> words.dtype.type(self.width - 1) != 0

    def nan(self, words: Words) -> Mask:
        """Return which words are not a number."""
        if self.unsigned_zero:
            return words == words.dtype.type(2 ** (self.width - 1))
        sizes = self.sizes(words)
        if self.infinite:
            return sizes > words.dtype.type((2**self.exponent - 1) << self.mantissa)
        return sizes == words.dtype.type(2 ** (self.width - 1) - 1)

    def infinities(self, words: Words) -> Mask:
        """Return which words are infinite."""
        if not self.infinite:
            return np.zeros(len(words), np.bool_)
        return self.sizes(words) == words.dtype.type((2**self.exponent - 1) << self.mantissa)

    def finite(self, words: Words) -> Mask:
        """Return which words are finite."""
        return ~(self.nan(words) | self.infinities(words))

    def zeros(self, words: Words) -> Mask:
        """Return which words are zeros of either sign."""
        return (self.sizes(words) == 0) & self.finite(words)

    def denormals(self, words: Words) -> Mask:
        """Return which words are other than zero and smaller than the smallest normal one."""
        small = self.sizes(words) < words.dtype.type(2**self.mantissa)
        return small & (self.sizes(words) != 0)

    def normals(self, words: Words) -> Mask:
        """Return which words are finite, not zero and not denormal."""
        return self.finite(words) & (self.sizes(words) >= words.dtype.type(2**self.mantissa))


FLOAT32 = Format("float32", 32, 8, 23)
FORMATS = {
    torch.float64: Format("float64", 64, 11, 52),
    torch.float32: FLOAT32,
    torch.float16: Format("float16", 16, 5, 10),
    torch.bfloat16: Format("bfloat16", 16, 8, 7),
    torch.float8_e5m2: Format("float8_e5m2", 8, 5, 2),
    torch.float8_e4m3fn: Format("float8_e4m3fn", 8, 4, 3, infinite=False),
    torch.float8_e5m2fnuz: Format("float8_e5m2fnuz", 8, 5, 2, False, True),
    torch.float8_e4m3fnuz: Format("float8_e4m3fnuz", 8, 4, 3, False, True),
}
"""Real formats by dtype. Complex numbers are pairs of them; everything else is integers, or
exponents without mantissa (float8_e8m0fnu), and audited as bytes."""

_PAIRS = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
}


def format_of(tensor: torch.Tensor) -> Format | None:
    """Return the format of a tensor's real numbers; ``None`` where it holds no such."""
    return FORMATS.get(_PAIRS.get(tensor.dtype, tensor.dtype))


def words_of(tensor: torch.Tensor) -> Words:
    """Return a tensor's elements as words; complex ones as pairs, quantised ones as their codes."""
    size = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return _bytes(tensor).view(np.dtype(f"<u{size}"))


def numbers(tensor: torch.Tensor) -> NDArray[np.floating[Any]]:
    """Return the real numbers of a tensor with a format, flattened; float64 where it is that."""
    flat = _plain(tensor)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    values: NDArray[np.floating[Any]] = wide.numpy()
    return values


def is_real(tensor: torch.Tensor) -> bool:
    """Whether it holds floating-point or complex numbers with a mantissa."""
    return format_of(tensor) is not None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements in one dimension, whatever the layout."""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.is_meta:
        return torch.empty(0, dtype=tensor.dtype)
    if tensor.layout != torch.strided:  # never made dense: a shape may claim any size
        coo = tensor.layout == torch.sparse_coo
        tensor = tensor._values() if coo else tensor.values()
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat = _plain(tensor)
    if flat.numel() == 0:
        return np.zeros(0, np.uint8)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    content: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return content
