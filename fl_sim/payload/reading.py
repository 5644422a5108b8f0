"""What a receiver read from a carrier, and what he can tell of each image in it."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fl_sim.carriers.base import Payload


class Status(IntEnum):
    """What became of an image's code on its way."""

    LOST = 0
    DAMAGED = 1
    INTACT = 2


@dataclass(frozen=True)
class Reading:
    """What a receiver read from a carrier, before any decoding.

    Args:
        content: bytes or values, as they arrived; as many as were sent, where that is known.
        status: what became of each image, int8 ``[n]`` of :class:`Status`, as the receiver can
            tell by checksums; ``None`` where he cannot tell.
        corrected: what error correction made of the content; ``None`` without such.
        parts: names of the payload's parts and how many images each holds, in the images' order;
            empty where it is one.
        soft: what was read of each bit of the content, the lowest of a byte first: positive where
            it is rather 1, larger in size the surer; ``None`` where bits are read hard.
    """

    content: Payload
    status: NDArray[np.int8] | None = None
    corrected: Payload | None = None
    parts: tuple[tuple[str, int], ...] = ()
    soft: NDArray[np.float32] | None = None
