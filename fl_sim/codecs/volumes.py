"""Volumes through image codecs: each slice an image, its two neighbours as further channels.

Li, Ayache and Delingette, "Data Exfiltration by Compression Attack", MELBA 2025:032, section 3.1.1:
HiFiC takes RGB images, so each slice is surrounded by its lower and upper slice to fill the three
channels; intensities are min-max normalised over the whole volume, and mapped back afterwards.
"""

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl_sim.codecs.base import Codec
from fl_sim.errors import FlSimError

GZIP_LEVEL = 6
"""What the ``gzip`` program uses unless told otherwise."""

Volume = torch.Tensor | np.ndarray[Any, np.dtype[Any]]
"""Intensities ``[depth, height, width]`` of any range and real dtype."""


@dataclass(frozen=True)
class CodedVolume:
    """A volume as a codec left it.

    Args:
        codes: one a slice, from the first to the last.
        shape: depth, height and width of the volume.
        low: lowest intensity of the volume.
        high: highest intensity of the volume.
        channels: 3 where a code holds a slice between its neighbours, 1 where the slice alone.
    """

    codes: list[bytes]
    shape: tuple[int, int, int]
    low: float
    high: float
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.codes) != self.shape[0]:
            raise FlSimError(
                f"A coded volume of {self.shape[0]} slices needs as many codes, "
                f"but has {len(self.codes)}."
            )


@dataclass(frozen=True)
class DecodedVolume:
    """A volume as a receiver has it.

    Args:
        volume: float32 ``[depth, height, width]`` in the original range; slices that could not be
            decoded are not a number.
        reasons: why, by the number of the slice.
    """

    volume: torch.Tensor
    reasons: dict[int, str]


def triples(volume: Volume) -> tuple[torch.Tensor, float, float]:
    """Make an image of each slice, with its lower and upper neighbour as first and third channel.

    The first and the last slice stand for the neighbours that they lack. A constant volume becomes
    black images.

    Returns:
        float32 images ``[depth, 3, height, width]`` in [0, 1], and the volume's lowest and highest
        intensity.

    Raises:
        FlSimError: if it is not a volume, is empty, or has an intensity that is not finite.
    """
    slices, low, high = _normalised(volume)
    below = torch.cat([slices[:1], slices[:-1]])
    above = torch.cat([slices[1:], slices[-1:]])
    return torch.stack([below, slices, above], dim=1), low, high


def volume_of(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Put a volume together again from the middle channels of its images.

    Args:
        images: ``[depth, channels, height, width]`` in [0, 1], with 3 channels as made by
            :func:`triples`, or with 1.
        low: intensity that 0 stands for.
        high: intensity that 1 stands for.

    Returns:
        float32 ``[depth, height, width]`` in [low, high].

    Raises:
        FlSimError: if images have another number of channels.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise FlSimError(
            "Slices must be [depth, 1 or 3, height, width] to become a volume, "
            f"but their shape is {list(images.shape)}."
        )
    middle = images[:, images.shape[1] // 2].double()
    return (low + middle * (high - low)).float()


def encode_volume(codec: Codec[Any], volume: Volume, neighbours: bool | None = None) -> CodedVolume:
    """Encode each slice of a volume.

    Args:
        codec: fitted.
        volume: to encode.
        neighbours: whether a code holds a slice's neighbours too; by default in lossy codecs, as
            in the paper, and not in lossless ones, where it would triple the size for nothing.

    Raises:
        FlSimError: if the volume is unusable or the codec refuses its slices' size.
    """
    images, low, high = triples(volume)
    if neighbours is None:
        neighbours = not codec.lossless
    if not neighbours:
        images = images[:, 1:2]
    depth, channels, height, width = images.shape
    return CodedVolume(codec.encode(images), (depth, height, width), low, high, channels)


def decode_volume(codec: Codec[Any], coded: CodedVolume) -> DecodedVolume:
    """Decode each slice of a volume; damaged codes are slices that are not a number."""
    depth, height, width = coded.shape
    shape = (coded.channels, height, width)
    images = torch.full((depth, *shape), torch.nan)
    reasons: dict[int, str] = {}
    for number, image in enumerate(codec.decode(coded.codes, shape)):
        if isinstance(image, str):
            reasons[number] = image
        else:
            images[number] = image
    return DecodedVolume(volume_of(images, coded.low, coded.high), reasons)


def gzip_bytes(values: np.ndarray[Any, np.dtype[Any]]) -> int:
    """Return the size of an array under gzip, the lossless baseline of the paper's section 3.2.

    Args:
        values: in the dtype in which they are stored; compressed in C order without a header.
    """
    return len(gzip.compress(values.tobytes(), GZIP_LEVEL, mtime=0))


def _normalised(volume: Volume) -> tuple[torch.Tensor, float, float]:
    if volume.ndim != 3 or 0 in volume.shape:
        raise FlSimError(
            "A volume must be [depth, height, width] with at least one slice, "
            f"but its shape is {list(volume.shape)}."
        )
    if isinstance(volume, torch.Tensor):
        values = volume.detach().cpu().double()
    else:
        # float64 holds every integer intensity exactly, whatever the byte order of the file.
        values = torch.from_numpy(volume.astype(np.float64))
    if not bool(values.isfinite().all()):
        raise FlSimError(
            "The volume has intensities that are not finite; replace them before it is encoded."
        )
    low, high = float(values.min()), float(values.max())
    spread = high - low if high > low else 1.0
    return ((values - low) / spread).float(), low, high
