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

_CHECK, _SHORT_CHECK = 2, 1


def longest(frame: int, codec: Codec[Any]) -> int:
    """Return how many bytes a code may have in a frame of so many."""
    return frame - (1 + _CHECK if codec.code_bytes is None else _SHORT_CHECK)


def framed(codes: Sequence[bytes], frame: int, codec: Codec[Any]) -> Bytes:
    """Return a payload: of each code its length, a checksum, itself, and zeros.

    Where all codes have one length, that is not sent, and the checksum is a byte.

    Args:
        codes: one an image, each of at most :func:`longest` bytes.
        frame: bytes of each image.
        codec: whose they are.
    """
    if codec.code_bytes is None:
        parts = [bytes([len(code)]) + _checksum(code, _CHECK) + code for code in codes]
    else:
        parts = [_checksum(code, _SHORT_CHECK) + code for code in codes]
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
        check, code = _parted(part, codec)
        image = codec.decode([code], shape)[0]
        if isinstance(image, torch.Tensor):
            decoded[number] = image
            intact = _checksum(code, len(check)) == check
            status[number] = Status.INTACT if intact else Status.DAMAGED
    return decoded, status


def _parted(part: bytes, codec: Codec[Any]) -> tuple[bytes, bytes]:
    """Return checksum and code of a frame."""
    if codec.code_bytes is None:
        length = min(part[0], longest(len(part), codec))
        return part[1 : 1 + _CHECK], part[1 + _CHECK : 1 + _CHECK + length]
    return part[:_SHORT_CHECK], part[_SHORT_CHECK : _SHORT_CHECK + codec.code_bytes]


def _checksum(code: bytes, length: int) -> bytes:
    return zlib.crc32(code).to_bytes(4, "little")[:length]
