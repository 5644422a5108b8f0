"""The gzip codec: pixels as whole numbers, compressed by DEFLATE (RFC 1951, RFC 1952).

The baseline that the paper compares with (Li et al. 2025, arXiv 2511.21227).
"""

import gzip
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from fl_sim.codec import CODECS, ImageShape
from fl_sim.codecs.lossless import LosslessCodec, check_shape, from_levels, to_levels
from fl_sim.settings import Settings


class GzipSettings(Settings):
    """Settings of gzip.

    Args:
        bits: a pixel; 16 for images that came with more than 256 levels.
    """

    bits: Literal[8, 16] = 8


@CODECS.register("gzip", "lossless: pixels compressed with gzip, level 9")
class Gzip(LosslessCodec[GzipSettings]):
    """Gzip at level 9; lossless for images of ``2^bits`` levels."""

    name = "gzip"
    Settings = GzipSettings

    def encode(self, images: torch.Tensor) -> list[bytes]:
        """Return each image's gzip file, without name or time."""
        levels = to_levels(images, self.settings.bits).astype(self._dtype())
        return [gzip.compress(image.tobytes(), compresslevel=9, mtime=0) for image in levels]

    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        """Return each image, or why its code cannot be decoded.

        Raises:
            FlSimError: if no image has such a shape.
        """
        check_shape(shape)
        return [self._decode_one(bytes(code), shape) for code in codes]

    def _dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return np.dtype("u1") if self.settings.bits == 8 else np.dtype("<u2")

    def _decode_one(self, code: bytes, shape: ImageShape) -> torch.Tensor | str:
        size = int(np.prod(shape)) * self._dtype().itemsize
        stream = zlib.decompressobj(wbits=31)
        try:
            # One byte more than an image has shows that there is more, and takes no more memory.
            content = stream.decompress(code, size + 1)
        except zlib.error as error:
            return f"The code is damaged: {error}."
        if len(content) != size or not stream.eof:
            return f"The code is damaged: it does not hold the {size} bytes of an image."
        levels = np.frombuffer(content, dtype=self._dtype()).astype(np.uint16)
        return from_levels(levels, shape, self.settings.bits)
