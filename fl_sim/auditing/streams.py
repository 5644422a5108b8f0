"""Streams of bytes that a writer may have put together from the bits of a state's numbers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.auditing.numbers import Format, Words, format_of, words_of
from fl_sim.auditing.precision import codes_on_grid, narrow_format, narrower, precision_of
from fl_sim.auditing.subject import FEWEST

DEPTHS = (1, 2, 4)
"""Low bits an element, of those that are no whole bytes, for which streams are put together; both
orders of bits, and every place within a byte at which the first element may lie."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Series:
    """Words that are searched as one: a tensor's, or those of many small tensors in their order.

    Args:
        name: of the tensor; ``None`` for many.
        where: words for a report, such as "its" or "its small tensors'".
        words: of the elements.
        format: of floating-point numbers; ``None`` for integers and others.
    """

    name: str | None
    where: str
    words: Words
    format: Format | None = None


def series_of(state: Mapping[str, torch.Tensor]) -> Iterator[Series]:
    """Return every tensor with 1,024 elements or more, and the smaller ones together by dtype.

    The smaller ones come twice: all together, and those of one kind (``running_mean``, ``bias``).
    """
    small: dict[tuple[torch.dtype, str], list[Words]] = defaultdict(list)
    formats: dict[torch.dtype, Format | None] = {}
    for name, tensor in state.items():
        words, form = words_of(tensor), format_of(tensor)
        if tensor.numel() >= FEWEST:
            yield from _of_tensor(name, words, form, tuple(tensor.shape))
        elif len(words):
            formats[tensor.dtype] = form
            small[tensor.dtype, ""].append(words)
            small[tensor.dtype, name.rpartition(".")[2]].append(words)
    for (dtype, kind), parts in small.items():
        if kind and len(parts) == len(small[dtype, ""]):
            continue  # the only kind there is
        where = f"the small {str(dtype)[6:]} tensors'"
        if kind:
            where += f" ('{kind[:40]}', {len(parts)} together)"
        yield Series(None, where, np.concatenate(parts), formats[dtype])


def _of_tensor(
    name: str, words: Words, form: Format | None, shape: tuple[int, ...]
) -> Iterator[Series]:
    """Return a tensor's words, and the narrower ones that its numbers are; codes in their stead."""
    if form is None:
        yield Series(name, "its", words)
        return
    codes = codes_on_grid(words, form, shape)
    if codes is not None:
        yield Series(name, "its codes'", (codes & 255).astype(np.uint8))
        return
    yield Series(name, "its", words, form)
    kept = form.normals(words)
    label = precision_of(words, kept, form, shape).label
    inner = narrow_format(label)
    if inner is not None:
        yield Series(name, f"its {label} numbers'", narrower(words, form, label), inner)


def volume(series: Series) -> int:
    """Return about how many bytes all streams of a series have."""
    return len(series.words) * (series.words.itemsize * 3 + 2 * 8)


def streams(series: Series) -> Iterator[tuple[str, Bytes, bool]]:
    """Return streams: where they lie, their bytes, and whether they are random by nature.

    They are all bytes, whole low bytes, single bytes, and low bits. Bytes with bits of an exponent
    are not random, unless bytes of the mantissa lie between them.
    """
    form = series.format
    mantissa = 8 * series.words.itemsize if form is None else form.mantissa
    words, size = np.ascontiguousarray(series.words), series.words.itemsize
    table = words.view(np.uint8).reshape(-1, size)  # little-endian: the lowest byte first
    yield "bytes", table.ravel(), mantissa >= 16
    if size > 1:
        yield "bytes, each element's last one first", table[:, ::-1].ravel(), mantissa >= 16
    for count in _whole_bytes(series):
        yield f"lowest {8 * count} bits", table[:, :count].ravel(), True
        yield f"lowest {8 * count} bits, the highest first", table[:, count - 1 :: -1].ravel(), True
    if size > 1:
        for byte in range(size):
            random = 8 * byte + 8 <= mantissa
            yield f"bits {8 * byte} to {8 * byte + 7}", np.array(table[:, byte]), random
    for depth in DEPTHS:
        if depth <= mantissa:
            for where, content in bit_streams(f"lowest {depth} bits", table[:, 0], depth):
                yield where, content, True


def _whole_bytes(series: Series) -> tuple[int, ...]:
    """Return how many low bytes of an element may belong together, short of all and of one."""
    size = series.words.itemsize
    if series.format is None:
        return tuple(count for count in (2, 4) if count < size)
    return tuple(range(2, min(size - 1, series.format.mantissa // 8) + 1))


def bit_streams(where: str, elements: Bytes, depth: int) -> Iterator[tuple[str, Bytes]]:
    """Return the streams of the low bits of elements: both orders, at every place within a byte."""
    bits = np.unpackbits(elements[:, None], axis=1, count=depth, bitorder="little")
    orders: tuple[tuple[Literal["little", "big"], str, NDArray[np.uint8]], ...]
    orders = (("little", "", bits), ("big", ", the highest first", bits[:, ::-1]))
    for order, words, own in orders:
        packed = np.packbits(own.ravel(), bitorder=order)
        for place in range(0, 8, depth):
            yield where + words, _shifted(packed, place, order == "little")


def _shifted(packed: Bytes, place: int, little: bool) -> Bytes:
    """Return packed bits from bit ``place`` on."""
    if place == 0 or len(packed) < 2:
        return packed
    here, after = np.uint8(place), np.uint8(8 - place)
    if little:
        return np.asarray(packed[:-1] >> here | packed[1:] << after, np.uint8)
    return np.asarray(packed[:-1] << here | packed[1:] >> after, np.uint8)
