"""Images in few bytes: a frame each, of a size known beforehand.

The payload container of other attacks spends more than 100 bytes before the first image, which here
is more than the whole channel.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.codec import Codec, ImageShape
from fl_sim.coding.base import Bytes
from fl_sim.payload.reading import Status

_CHECK = 2


def longest(frame: int) -> int:
    """Return how many bytes a code may have in a frame of so many."""
    return frame - 1 - _CHECK


def framed(codes: Sequence[bytes], frame: int) -> Bytes:
    """Return a payload: of each code its length, a checksum, itself, and zeros.

    Args:
        codes: one an image, each of at most :func:`longest` bytes.
        frame: bytes of each image.
    """
    parts = [bytes([len(code)]) + _checksum(code) + code for code in codes]
    return np.frombuffer(b"".join(part.ljust(frame, b"\0") for part in parts), np.uint8)


def unframed(
    content: Bytes,
    images: int,
    frame: int,
    codec: Codec[Any],
    shape: ImageShape,
) -> tuple[torch.Tensor, NDArray[np.int8]]:
    """Return images ``[n, channels, height, width]``, NaN where lost, and what became of each."""
    decoded = torch.full((images, *shape), float("nan"))
    status = np.full(images, Status.LOST, dtype=np.int8)
    for number in range(images):
        part = content[number * frame : (number + 1) * frame].tobytes()
        length = min(part[0], longest(len(part)))
        code = part[1 + _CHECK : 1 + _CHECK + length]
        image = codec.decode([code], shape)[0]
        if isinstance(image, torch.Tensor):
            decoded[number] = image
            intact = _checksum(code) == part[1 : 1 + _CHECK]
            status[number] = Status.INTACT if intact else Status.DAMAGED
    return decoded, status


def _checksum(code: bytes) -> bytes:
    return zlib.crc32(code).to_bytes(4, "little")[:_CHECK]
