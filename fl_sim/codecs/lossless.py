"""What lossless codecs share: nothing to train, and pixels as whole numbers."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.codec import Codec, CodecSettingsT, FitReport, ImageShape
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream

LARGEST = 2**28
"""Pixels of one image, channels counted: beyond it nothing is decoded."""


class LosslessCodec(Codec[CodecSettingsT]):
    """A codec without weights."""

    lossless: ClassVar[bool] = True

    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        """Do nothing: there is nothing to fit."""
        return FitReport()

    def tensors(self, decoder_only: bool = False) -> dict[str, torch.Tensor]:
        """Return nothing: there are no weights."""
        return {}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take nothing up.

        Raises:
            FlSimError: if there is something.
        """
        if tensors:
            raise FlSimError(
                f"The codec '{self.name}' has no weights; '{min(tensors)}' is not its."
            )


def check_shape(shape: Sequence[int]) -> None:
    """Refuse shapes that no image has.

    Raises:
        FlSimError: if it is not 1 or 3 channels, a height and a width, or too large.
    """
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 1:
        raise FlSimError("A codec takes images of 1 or 3 channels, [n, channels, height, width].")
    if shape[0] * shape[1] * shape[2] > LARGEST:
        raise FlSimError(f"Images of {shape[1]} x {shape[2]} pixels are too large for a codec.")


def to_levels(images: torch.Tensor, bits: int = 8) -> NDArray[np.uint16]:
    """Round pixels in [0, 1] to ``2^bits`` levels.

    Raises:
        FlSimError: if the images' shape is impossible, or a pixel is not in [0, 1].
    """
    check_shape(images.shape[1:])
    pixels = images.detach().cpu().double()
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise FlSimError("A codec takes images in [0, 1]; scale them, and look for NaN.")
    return (pixels * (2**bits - 1)).round().numpy().astype(np.uint16)


def from_levels(levels: NDArray[np.uint16], shape: ImageShape, bits: int = 8) -> torch.Tensor:
    """Return levels as an image in [0, 1].

    For 8 bits it is what dividing bytes by 255 in single precision gives, bit for bit.
    """
    values = torch.from_numpy(levels.astype(np.float32)).reshape(shape)
    return values / (2**bits - 1)
