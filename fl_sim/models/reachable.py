"""Convolutions that leave out what meets only padding.

On a 1 x 1 feature map with padding 1, eight of nine taps of a 3 x 3 kernel meet only the padding's
zeros. Their products are computed in vain, and on small maps they are most of a step. Here a
convolution takes the part of its kernel that its images reach, with less padding; where that part
covers the map, it is one product of matrices. Outputs and gradients are the same but for rounding,
and taps that are left out have a gradient of exactly zero, as before.
"""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Pair = tuple[int, int]


def leave_out_padding(network: nn.Module) -> None:
    """Let a network's 2-D convolutions leave out what meets only padding, in place.

    What that is follows from the size of each input when it comes, so the network takes images of
    any size, and its graph need not be known. Parameters, state dictionary, and modules with their
    classes and names stay as they are; what changes is how ``nn.Conv2d.forward`` convolves.

    Args:
        network: any. Convolutions whose padding is not of zeros, or that convolve in a way of
            their own, are left alone.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
            continue
        kind, own = type(module), vars(module).keys() & {"forward", "_conv_forward"}
        plain = (kind.forward, kind._conv_forward) == (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        if plain and not own and max(module.kernel_size) > 1:
            convolve: Any = _Convolve(module, Convolution.of(module))
            module._conv_forward = convolve  # type: ignore[method-assign]


class _Convolve:
    """Convolves for a module, by the settings that it has when it is called.

    The module is not held, or a network would be freed only when cycles are looked for; a shallow
    copy that outlives it convolves as it did at first.
    """

    def __init__(self, module: nn.Conv2d, first: "Convolution") -> None:
        self._module = weakref.ref(module)
        self._first = first

    def __reduce__(self) -> tuple[Any, ...]:
        module = self._module()
        if module is None:
            return copy.copy, (self._first,)
        return _Convolve, (module, self._first)

    def __call__(
        self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        module = self._module()
        if module is None:
            return self._first(images, weight, bias)
        if module.padding_mode != "zeros":
            return nn.Conv2d._conv_forward(module, images, weight, bias)
        return Convolution.of(module)(images, weight, bias)


@dataclass(frozen=True)
class Reach:
    """What images of one size meet of a kernel.

    Args:
        first, last: along each side, the first tap that meets a pixel, and the one behind the last.
        padding: of a convolution with these taps alone.
        covers: whether they lie once over the whole image, so that they make a product of matrices.
    """

    first: Pair
    last: Pair
    padding: Pair
    covers: bool

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the part that is met of a weight ``[outputs, inputs, height, width]``."""
        (top, left), (bottom, right) = self.first, self.last
        cut = [-left, right - weight.shape[3], -top, bottom - weight.shape[2]]
        return functional.pad(weight, cut)  # its gradient takes one pass, a slice's one a side


@dataclass(frozen=True)
class Convolution:
    """A 2-D convolution with zero padding: what ``nn.Conv2d`` makes of its weight and bias.

    It holds no tensors, so it can be copied, pickled and shared with the module that it runs for.

    Args:
        kernel, stride, dilation: along each side.
        padding: before the image along each side.
        same: whether what is added behind makes the output as large as the image; otherwise it is
            as much as before.
        groups: of channels.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: Pair
    same: bool
    groups: int

    @classmethod
    def of(cls, module: nn.Conv2d) -> "Convolution":
        """Return a module's convolution."""
        return cls(
            _pair(module.kernel_size),
            _pair(module.stride),
            _pair(module.dilation),
            _pair(leading_padding(module)),
            module.padding == "same",
            module.groups,
        )

    def __call__(
        self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Convolve images ``[n, inputs, height, width]``, or one without ``n``."""
        reach = reached(self, _pair(images.shape[-2:])) if images.dim() == 4 else None
        padding: Any = "same" if self.same else self.padding
        if reach is not None:
            weight, padding = reach.of(weight), reach.padding
            if reach.covers:
                products = functional.linear(images.flatten(1), weight.flatten(1), bias)
                return products[:, :, None, None]
        return functional.conv2d(
            images, weight, bias, self.stride, padding, self.dilation, self.groups
        )

    def transposed(self, signal: torch.Tensor, weight: torch.Tensor, size: Pair) -> torch.Tensor:
        """Return the transposed convolution of a signal, with the same weight and no bias.

        Args:
            signal: ``[n, outputs, height, width]``, as large as the convolution's output.
            weight: of the convolution, whose padding behind is as before.
            size: height and width of the images that come out.
        """
        reach, padding = reached(self, size), self.padding
        if reach is not None:
            weight, padding = reach.of(weight), reach.padding
            if reach.covers:
                return (signal.flatten(1) @ weight.flatten(1)).unflatten(1, (-1, *size))
        extra = []
        for d in (0, 1):
            spread = (signal.shape[2 + d] - 1) * self.stride[d]
            taps = self.dilation[d] * (weight.shape[2 + d] - 1) + 1
            extra.append(size[d] + 2 * padding[d] - spread - taps)
        return functional.conv_transpose2d(
            signal, weight, None, self.stride, padding, extra, self.groups, self.dilation
        )

    def added(self, side: int) -> int:
        """Return how much padding there is along a side, before and behind together."""
        if self.same:
            return self.dilation[side] * (self.kernel[side] - 1)
        return 2 * self.padding[side]

    def places(self, size: int, side: int, taps: int, added: int) -> int:
        """Return the output's length along a side, with other taps and padding than its own."""
        return (size + added - self.dilation[side] * (taps - 1) - 1) // self.stride[side] + 1


@lru_cache(maxsize=4096)
def reached(convolution: Convolution, size: Pair) -> Reach | None:
    """Return what images of a size meet of a convolution's kernel.

    Args:
        convolution: with zero padding.
        size: height and width of the images.

    Returns:
        ``None`` where the convolution runs best as it is: its images meet all of it, or none, or
        what they meet has another padding before than behind.
    """
    rows, columns = (_along(convolution, size[side], side) for side in (0, 1))
    if rows is None or columns is None:
        return None
    (top, bottom, above), (left, right, beside) = rows, columns
    taps = (bottom - top, right - left)
    close = all(d == 1 or n == 1 for d, n in zip(convolution.dilation, size, strict=True))
    covers = convolution.groups == 1 and taps == size and (above, beside) == (0, 0) and close
    if taps == convolution.kernel and not covers:
        return None
    return Reach((top, left), (bottom, right), (above, beside), covers)


def _along(convolution: Convolution, size: int, side: int) -> tuple[int, int, int] | None:
    """Return the first tap that meets a pixel, the one behind the last, and their padding."""
    kernel, dilation = convolution.kernel[side], convolution.dilation[side]
    before, added = convolution.padding[side], convolution.added(side)
    output = convolution.places(size, side, kernel, added)
    live = live_taps(kernel, convolution.stride[side], dilation, before, size, output)
    if not any(live):
        return None
    first, last = live.index(True), kernel - live[::-1].index(True)
    padding = before - first * dilation
    if padding < 0 or convolution.places(size, side, last - first, 2 * padding) != output:
        return None
    return first, last, padding


def live_taps(
    kernel: int, stride: int, dilation: int, padding: int, wide: int, narrow: int
) -> list[bool]:
    """Return for each tap along one side of a kernel whether it ever meets data.

    Output ``o`` of a convolution meets input ``o * stride - padding + tap * dilation``; in a
    transposed one, output and input change places.

    Args:
        kernel, stride, dilation: along the side.
        padding: before the data.
        wide: length of the input.
        narrow: length of the output.
    """
    return [
        any(0 <= place * stride - padding + tap * dilation < wide for place in range(narrow))
        for tap in range(kernel)
    ]


def leading_padding(module: Any) -> Sequence[int]:
    """Return the padding before the data along each side of a convolution, transposed or not."""
    if module.padding == "valid":
        return [0] * len(module.kernel_size)
    if module.padding == "same":  # torch pads the end more where that is uneven
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        return [dilation * (kernel - 1) // 2 for kernel, dilation in pairs]
    padding: Sequence[int] = module.padding
    return padding


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return first, second
