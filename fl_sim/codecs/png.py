"""The PNG codec: 8-bit grey or RGB images as Pillow writes them."""

import io
import struct
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from fl_sim.codec import CODECS, ImageShape
from fl_sim.codecs.lossless import LosslessCodec, check_shape, from_levels, to_levels
from fl_sim.settings import Settings

_MODES = {1: "L", 3: "RGB"}


@CODECS.register("png", "lossless: 8-bit PNG")
class Png(LosslessCodec[Settings]):
    """PNG; lossless for images of 256 levels."""

    name = "png"

    def encode(self, images: torch.Tensor) -> list[bytes]:
        """Return each image's PNG file."""
        return [_encode_one(image) for image in to_levels(images).astype(np.uint8)]

    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        """Return each image, or why its code cannot be decoded.

        Raises:
            FlSimError: if no image has such a shape.
        """
        check_shape(shape)
        return [_decode_one(bytes(code), shape) for code in codes]


def _encode_one(image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    file = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _decode_one(code: bytes, shape: ImageShape) -> torch.Tensor | str:
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images: their size is compared below
            image = Image.open(io.BytesIO(code), formats=["PNG"])
            # Opening reads the header only: a bomb is refused before it is unpacked.
            if image.size != (width, height) or image.mode != _MODES[channels]:
                return "The code is damaged: it is a PNG of another size or kind."
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return "The code is damaged: it is no PNG, or not a whole one."
    levels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return from_levels(levels.astype(np.uint16), shape)
