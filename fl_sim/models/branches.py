"""Branches that do a task on the features of a shared encoder, such as a codec's.

An encoder that was never trained gives features of any scale; both branches normalise them first.
They are sequences of plain modules, so that a traced graph shows each of their layers.
"""

import itertools

import torch
from torch import nn

from fl_sim.errors import FlSimError

WIDTH = 128


class ClassificationBranch(nn.Sequential):
    """Features to the logits of an image: two convolutions, global average pooling, linear.

    Takes ``[n, channels, h, w]`` for any ``h`` and ``w``; returns ``[n, outputs]``.

    Args:
        channels: of the features.
        outputs: number of logits.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            *_convolution(channels, WIDTH),
            *_convolution(WIDTH, WIDTH),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTH, outputs),
        )


class SegmentationBranch(nn.Sequential):
    """Features to the logits of each pixel: the decoder of a light U-Net, without skips.

    Takes ``[n, channels, h, w]`` and returns ``[n, classes, size, size]``. Each step doubles the
    side and halves the channels; what an encoder padded at the bottom and the right is cut off.

    Args:
        channels: of the features.
        classes: number of logits a pixel.
        size: side of the images in pixels, at most ``stride * h``.
        stride: pixels that a feature stands for along a side, a power of two.

    Raises:
        FlSimError: if the stride is not a power of two.
    """

    def __init__(self, channels: int, classes: int, size: int, stride: int = 16) -> None:
        if stride < 1 or stride & (stride - 1):
            raise FlSimError(
                "A segmentation branch doubles the side step by step, so the encoder's stride must "
                f"be a power of two, not {stride}."
            )
        widths = [max(16, WIDTH >> step) for step in range(stride.bit_length())]
        steps: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            steps += [nn.Upsample(scale_factor=2, mode="nearest"), *_convolution(wide, narrow)]
        super().__init__(
            nn.BatchNorm2d(channels),
            *_convolution(channels, widths[0]),
            *steps,
            nn.Conv2d(widths[-1], classes, 1),
            _Crop(size),
        )


class _Crop(nn.Module):
    """Keeps the upper left square."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., : self.size, : self.size]


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
