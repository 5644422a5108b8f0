"""A transform codec of a few bytes an image: principal components of images of the same kind.

The Karhunen-Loeve transform of images that whoever receives has too (public ones of the same kind),
its coefficients quantised as normal ones (Max, "Quantizing for minimum distortion", IRE
Transactions on Information Theory 6, 1960; Lloyd 1982), each with as many bits as its variance
deserves (greedy bit allocation, which approaches reverse water-filling: Cover and Thomas, "Elements
of Information Theory", section 10.3.3). All codes have the same length, and every code of that
length is one of an image. Where a learned codec that was trained on other images spends 20 bytes on
something that nobody recognises, this one tells a photograph of skin from 511 others by six.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.codec import CODECS, Codec, FitReport, ImageShape
from fl_sim.codecs.lossless import check_shape
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.settings import Settings

_MOST_BITS = 8
_MOST_IMAGES, _MOST_NUMBERS = 2048, 1 << 27
_TENSORS = ("mean", "axes", "scales", "bits", "levels")


class PrincipalSettings(Settings):
    """Settings of the principal-components codec.

    Args:
        bytes: of each code.

    Example:
        bytes = 6
    """

    bytes: int = Field(8, ge=1, le=255)


@CODECS.register("principal", "a few bytes an image: principal components of images of its kind")
class Principal(Codec[PrincipalSettings]):
    """Principal components, quantised; images of the one shape that it was fitted to."""

    name = "principal"
    Settings = PrincipalSettings

    def __init__(self, settings: PrincipalSettings) -> None:
        super().__init__(settings)
        self._tensors: dict[str, torch.Tensor] = {}

    @property
    def code_bytes(self) -> int | None:
        """Length of every code."""
        return self.settings.bytes

    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        """Find the components of at most 2,048 images; see :class:`fl_sim.codec.Codec`."""
        check_shape(images.shape[1:])
        most = min(_MOST_IMAGES, _MOST_NUMBERS // max(1, images[:1].numel()))
        if min(len(images), most) < 2:
            raise FlSimError("The codec 'principal' is fitted to two images or more.")
        order = stream.numpy("principal").permutation(len(images))[:most]
        values = images[torch.from_numpy(np.sort(order))].flatten(1).double()
        mean = values.mean(dim=0)
        # Of n images the n x n products tell all: they have no more components.
        variances, vectors = torch.linalg.eigh((values - mean) @ (values - mean).T)
        variances = variances.flip(0).clamp(min=0) / (len(values) - 1)
        found = int((variances > 1e-12).sum().clamp(min=1))
        bits = allotted(variances[:found].numpy(), 8 * self.settings.bytes)
        used = np.flatnonzero(bits)
        if not len(used):
            raise FlSimError("The codec 'principal' is fitted to images that differ.")
        axes = (vectors.flip(1)[:, used].T @ (values - mean)).float()
        self._tensors = {
            "mean": mean.float().view(images.shape[1:]),
            "axes": torch.nn.functional.normalize(axes, dim=1),
            "scales": variances[used].sqrt().float(),
            "bits": torch.from_numpy(bits[used].astype(np.uint8)),
            "levels": torch.from_numpy(np.concatenate([levels_of(int(b)) for b in bits[used]])),
        }
        return FitReport(stopped="nothing left")

    def encode(self, images: torch.Tensor) -> list[bytes]:
        """Return each image's code; see :class:`fl_sim.codec.Codec`."""
        mean = self._fitted()["mean"]
        if images.shape[1:] != mean.shape:
            raise FlSimError(
                f"The codec 'principal' was fitted to images of {_said(mean.shape)}, and these are "
                f"of {_said(images.shape[1:])}; fit it to images of their kind."
            )
        coefficients = (images.float() - mean).flatten(1) @ self._tensors["axes"].T
        coefficients = coefficients / self._tensors["scales"].clamp(min=1e-12)
        parts = []
        for number, (width, levels) in enumerate(self._components()):
            nearest = (coefficients[:, number : number + 1] - levels).abs().argmin(dim=1).numpy()
            parts.append(nearest[:, None] >> np.arange(width)[::-1] & 1)
        bits = np.concatenate(parts, axis=1).astype(np.uint8)
        padded = np.pad(bits, ((0, 0), (0, 8 * self.settings.bytes - bits.shape[1])))
        return [row.tobytes() for row in np.packbits(padded, axis=1)]

    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        """Return each image, or why its code cannot be decoded; see the base."""
        check_shape(shape)
        mean = self._fitted()["mean"]
        if tuple(shape) != tuple(mean.shape):
            return [f"The codec was fitted to images of {_said(mean.shape)}." for _ in codes]
        return [self._decoded(bytes(code)) for code in codes]

    def tensors(self, decoder_only: bool = False) -> dict[str, torch.Tensor]:
        """Return mean, components and levels: what encodes is what decodes."""
        return dict(self._tensors)

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up mean, components and levels; see :class:`fl_sim.codec.Codec`."""
        if not _fits(tensors, 8 * self.settings.bytes):
            raise FlSimError(
                f"The tensors do not fit the codec 'principal' of {self.settings.bytes} bytes."
            )
        self._tensors = {name: tensors[name] for name in _TENSORS}

    def _fitted(self) -> dict[str, torch.Tensor]:
        if not self._tensors:
            raise FlSimError("The codec 'principal' has not been fitted to any images.")
        return self._tensors

    def _components(self) -> list[tuple[int, torch.Tensor]]:
        """Return bits and levels of each component."""
        widths = self._tensors["bits"].tolist()
        levels = self._tensors["levels"].split([1 << width for width in widths])
        return list(zip(widths, levels, strict=True))

    def _decoded(self, code: bytes) -> torch.Tensor | str:
        if len(code) != self.settings.bytes:
            return f"The code is damaged: it has {len(code)} bytes, not {self.settings.bytes}."
        bits = np.unpackbits(np.frombuffer(code, np.uint8))
        values, place = [], 0
        for width, levels in self._components():
            number = int(bits[place : place + width] @ (1 << np.arange(width)[::-1]))
            values.append(levels[number])
            place += width
        coefficients = torch.stack(values) * self._tensors["scales"]
        mean = self._tensors["mean"]
        return (mean + (coefficients @ self._tensors["axes"]).view(mean.shape)).clamp(0, 1)


def allotted(variances: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """Return how many bits each component gets, one after another to where most is lost without.

    Args:
        variances: of the components.
        bits: to be given out; fewer are where every component has eight.
    """
    given = np.zeros(len(variances), dtype=np.int64)
    left = variances.copy()
    for _ in range(bits):
        best = int(np.argmax(left))
        if left[best] <= 0:
            break
        given[best] += 1
        left[best] = left[best] / 4 if given[best] < _MOST_BITS else 0.0
    return given


@lru_cache
def levels_of(bits: int) -> NDArray[np.float32]:
    """Return the Lloyd-Max levels of a standard normal number, ascending, ``[2 ** bits]``."""
    from scipy.stats import norm

    count = 1 << bits
    levels = norm.ppf((np.arange(count) + 0.5) / count)
    for _ in range(1000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    return np.asarray(levels, dtype=np.float32)


def _fits(tensors: dict[str, torch.Tensor], bits: int) -> bool:
    if set(tensors) != set(_TENSORS):
        return False
    mean, axes, scales, widths, levels = (tensors[name] for name in _TENSORS)
    kinds = all(t.dtype == torch.float32 for t in (mean, axes, scales, levels))
    if not kinds or widths.dtype != torch.uint8 or mean.dim() != 3 or mean.shape[0] not in (1, 3):
        return False
    count = len(widths) if widths.dim() == 1 else 0
    given = [int(width) for width in widths.tolist()] if count else [0]
    return (
        1 <= min(given) <= max(given) <= _MOST_BITS
        and sum(given) <= bits
        and tuple(axes.shape) == (count, mean.numel())
        and tuple(scales.shape) == (count,)
        and tuple(levels.shape) == (sum(1 << width for width in given),)
        and all(bool(torch.isfinite(t).all()) for t in (mean, axes, scales, levels))
    )


def _said(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
