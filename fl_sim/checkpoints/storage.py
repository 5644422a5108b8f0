"""Storages: the memory behind tensors, read once, and which of its bytes some tensor shows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.checkpoints.source import Damaged

MOST_DIMENSIONS = 32
"""NumPy's own limit; a network's tensors have five at most."""

_LARGEST = 1 << 62
_SMALL = 1 << 16
_MOST_WORK = 64
"""A storage may be gone through so many times to find what its views show."""


@dataclass(eq=False)
class Storage:
    """A run of bytes that one or more tensors are views of.

    Args:
        key: its name in the file.
        size: in bytes.
        fill: reads it.
        views: every view of it that the file describes.
        swapped: bytes of an element that a big-endian machine wrote; 1 if none did.
        dtype: of its elements, where the storage itself says so.
    """

    key: str
    size: int
    fill: Callable[[], bytearray]
    views: list["View"] = field(default_factory=list)
    swapped: int = 1
    dtype: torch.dtype = torch.uint8
    _content: torch.Tensor | None = None

    def content(self) -> torch.Tensor:
        """Return it as bytes; read the first time only, shared afterwards."""
        if self._content is None:
            raw = self.fill()
            if len(raw) != self.size:
                raise Damaged(f"its storage {self.key} has not the size that it states")
            flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
            if self.swapped > 1:  # written by a big-endian machine
                flat = flat.view(-1, self.swapped).flip(1).reshape(-1)
            self._content = flat
        return self._content

    def release(self) -> None:
        """Forget the content; tensors made of it keep it."""
        self._content = None


@dataclass(frozen=True, eq=False)
class View:
    """A strided look at a storage, checked against its bounds; nothing is read for it.

    Args:
        storage: looked at.
        dtype: of the elements.
        offset: of the first element, in elements.
        shape: of the tensor.
        stride: in elements.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not whole or len(self.shape) != len(self.stride) or min(numbers) < 0:
            raise Damaged("a tensor's shape, strides or offset are no whole numbers that fit")
        if len(self.shape) > MOST_DIMENSIONS:
            raise Damaged(f"a tensor has {len(self.shape)} dimensions")
        claim = math.prod(n for n in self.shape if n)
        if max((claim, *numbers)) >= _LARGEST:
            raise Damaged("a tensor's shape is larger than any memory")
        if self.elements and (self.offset + self.span) * self.dtype.itemsize > self.storage.size:
            raise Damaged(f"a tensor reaches beyond its storage {self.storage.key}")
        self.storage.views.append(self)

    @property
    def elements(self) -> int:
        """Number of elements, doubled ones included."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of a copy with every element."""
        return self.elements * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements of the storage from its first to its last."""
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    @property
    def plain(self) -> bool:
        """Whether its elements lie one after the other, in their order."""
        return self._packed(zip(reversed(self.shape), reversed(self.stride), strict=True))

    @property
    def dense(self) -> bool:
        """Whether its elements lie one after the other, in any order of the dimensions."""
        return self._packed(sorted(zip(self.shape, self.stride, strict=True), key=lambda p: p[1]))

    @staticmethod
    def _packed(dimensions: Iterable[tuple[int, int]]) -> bool:
        expected = 1
        for n, s in dimensions:
            if n != 1 and s != expected:
                return False
            expected *= n
        return True

    def reach(self) -> NDArray[np.bool_]:
        """Return which elements of its span it shows.

        Shifts by doubled distances, so that the work grows with the span, not with the claim.
        """
        shown = np.zeros(self.span, bool)
        shown[0] = True
        for n, s in zip(self.shape, self.stride, strict=True):
            done = 1
            while s and done < n:
                step = min(done, n - done)
                moved = shown[: len(shown) - step * s].copy()
                shown[step * s :] |= moved
                done += step
        return shown


def shown(storage: Storage, views: list[View]) -> NDArray[np.bool_] | None:
    """Return which bytes of a storage the views show together; ``None`` for all of them."""
    mask: NDArray[np.bool_] | None = None
    work = 0
    for view in views:
        if not view.elements:
            continue
        width = view.dtype.itemsize
        begin, span = view.offset * width, view.span * width
        if view.dense and span == storage.size:
            return None
        if mask is None:
            mask = np.zeros(storage.size, bool)
        part = mask[begin : begin + span]
        if view.dense:
            part[:] = True
        else:
            work += len(part)
            if work > _MOST_WORK * max(storage.size, _SMALL):
                raise Damaged(f"its storage {storage.key} has more views than can be counted")
            part.reshape(-1, width)[view.reach()] = True
    return np.zeros(storage.size, bool) if mask is None else mask


class Memory:
    """How much may still be asked for beyond what the file's storages take themselves.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self.left = size + _SMALL

    def take(self, size: int) -> bool:
        """Return whether so many bytes may be asked for, and count them."""
        if size > self.left:
            return False
        self.left -= size
        return True


def tensor_of(view: View, memory: Memory) -> tuple[torch.Tensor, bool]:
    """Return a view's contiguous tensor, and whether it has every element in its shape.

    A view that would take more than the file justifies (expanded, or one of many that overlap)
    becomes the storage's elements from its first to its last, in one row.
    """
    if not view.elements:
        return torch.empty(view.shape, dtype=view.dtype), True
    width = view.dtype.itemsize
    flat = view.storage.content()[view.offset * width : (view.offset + view.span) * width]
    try:
        typed = flat.view(view.dtype)
    except RuntimeError:  # not aligned to the element
        typed = flat.clone().view(view.dtype)
    if view.plain:
        return typed.view(view.shape), True
    if memory.take(view.size):
        return typed.as_strided(view.shape, view.stride).contiguous(), True
    return typed, False
