"""What travels: images as a payload of codes (Z) or of latents (y), and back.

Sender and receiver share the codec and the carrier; everything else that the receiver needs (how
many images, where each code begins, the latents' scale) is in the payload itself.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.attacks.base import Extraction
from fl_sim.carriers.base import Payload
from fl_sim.codec import Codec, ImageShape, LearnedCodec
from fl_sim.coding.erasure import ErasureSettings
from fl_sim.payload.container import Found, pack, packed_size, unpack
from fl_sim.payload.reading import Reading, Status

_BATCH = 64
_SCALE_COPIES = 32
_LOG_RANGE = 16.0


@dataclass(frozen=True)
class Sent:
    """A payload and what is in it.

    Args:
        payload: for a carrier.
        images: how many images it holds, the first ones of those given.
    """

    payload: Payload
    images: int


class Message(ABC):
    """How images become a payload and come back from what a carrier delivered."""

    def __init__(self, codec: Codec, shape: ImageShape) -> None:  # type: ignore[type-arg]
        self.codec = codec
        self.shape = shape

    @abstractmethod
    def write(self, batches: Iterable[torch.Tensor], room: int | None) -> Sent:
        """Encode images until they end or the carrier's room (bytes or values) does.

        Args:
            batches: float32 ``[n, channels, height, width]`` in [0, 1].
            room: the carrier's capacity; ``None`` for no limit.
        """

    @abstractmethod
    def read(self, content: Payload, images: int) -> Extraction:
        """Decode ``images`` images from what arrived; one that is lost is NaN throughout."""

    @abstractmethod
    def code_bytes(self, payload: Payload) -> int:
        """Return how many bytes of an undamaged payload are images' codes or latents.

        Framing and parity are not counted.
        """

    def extra_of(self, content: Payload) -> bytes:
        """Return what travelled along with the images; empty where there is nothing, or damage."""
        return b""

    def count(self, images: int) -> int | None:
        """Return how much a receiver reads for ``images`` images; ``None`` for all there is."""
        return None

    def nothing(self, content: Payload, images: int) -> Extraction:
        """Return the extraction of a receiver who can decode nothing."""
        status = np.full(images, Status.LOST, dtype=np.int8)
        return self._extraction(["lost"] * images, content, status)

    def _extraction(
        self, decoded: list[torch.Tensor | str], content: Payload, status: NDArray[np.int8] | None
    ) -> Extraction:
        images = torch.full((len(decoded), *self.shape), math.nan)
        for position, image in enumerate(decoded):
            if isinstance(image, torch.Tensor):
                images[position] = image
        return Extraction(images, Reading(content, status))


class Codes(Message):
    """Entropy codes in the payload container: small, with a checksum for every image.

    Args:
        codec: encodes and decodes.
        shape: of the images.
        extra: what travels along in the container, for a receiver who has no tables yet.
        erasure: parity images, which follow the images' codes in the container.
    """

    def __init__(
        self,
        codec: Codec,  # type: ignore[type-arg]
        shape: ImageShape,
        extra: bytes = b"",
        erasure: ErasureSettings | None = None,
    ) -> None:
        super().__init__(codec, shape)
        self.extra = extra
        self.erasure = erasure

    def write(self, batches: Iterable[torch.Tensor], room: int | None) -> Sent:
        """See :class:`Message`."""
        codes: list[bytes] = []
        for batch in batches:
            codes += self.codec.encode(batch)
            if room is not None and self._size(codes) > room:
                break
        if room is not None:
            codes = codes[: self._fitting(codes, room)]
        parity = self.erasure.protect(codes) if self.erasure and codes else []
        packed = pack(codes + parity, self.shape, extra=self.extra)
        payload = np.frombuffer(packed, dtype=np.uint8)
        return Sent(payload, len(codes))

    def read(self, content: Payload, images: int) -> Extraction:
        """See :class:`Message`; images that the payload says it never held are lost."""
        found = self._found(content)[:images]
        found += [None] * (images - len(found))
        status = np.full(images, Status.LOST, dtype=np.int8)
        decoded: list[torch.Tensor | str] = ["lost"] * images
        present = [(place, code) for place, code in enumerate(found) if code is not None]
        arrived = self.codec.decode([code.code for _, code in present], self.shape)
        for (place, code), image in zip(present, arrived, strict=True):
            decoded[place] = image
            if isinstance(image, torch.Tensor):
                status[place] = Status.INTACT if code.intact else Status.DAMAGED
        return self._extraction(decoded, content, status)

    def code_bytes(self, payload: Payload) -> int:
        """See :class:`Message`."""
        return sum(len(image.code) for image in self._found(payload) if image)

    def extra_of(self, content: Payload) -> bytes:
        """See :class:`Message`."""
        return unpack(_bytes(content)).extra or b""

    def _found(self, content: Payload) -> list[Found | None]:
        """Return the images' codes, with those that parity makes good."""
        found = unpack(_bytes(content)).images[:]
        if self.erasure is None:
            return found
        erasure, count = self.erasure, len(found)
        images = next((n for n in range(count, 0, -1) if n + erasure.pieces(n) <= count), 0)
        whole = [image.code if image and image.intact else None for image in found]
        mended = erasure.recover(whole[:images], whole[images:])
        return [
            image if code is None else Found(code, True)
            for image, code in zip(found, mended, strict=False)
        ]

    def _size(self, codes: list[bytes]) -> int:
        lengths = [len(code) for code in codes]
        if self.erasure and codes:
            lengths += self.erasure.sizes(lengths)
        return packed_size(lengths, self.extra)

    def _fitting(self, codes: list[bytes], room: int) -> int:
        """Return how many codes, from the first, fit with their parity."""
        fits, too_many = 0, len(codes) + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._size(codes[:middle]) <= room:
                fits = middle
            else:
                too_many = middle
        return fits


class Latents(Message):
    """Decoded latents as numbers of unit deviation, after a header that tells their scale.

    The header is the scale's logarithm, repeated so that its mean survives noise. There are no
    checksums: a receiver of noisy numbers cannot tell, but every image comes out somehow.

    Args:
        codec: a learned codec.
        shape: of the images.
        rounding: whether the receiver rounds to the codec's grid, where it has one.
    """

    def __init__(self, codec: LearnedCodec, shape: ImageShape, rounding: bool = True) -> None:  # type: ignore[type-arg]
        super().__init__(codec, shape)
        self._codec = codec
        self.rounding = rounding

    @property
    def latent_shape(self) -> ImageShape:
        """Shape of one image's latents."""
        stride = self._codec.stride
        _, height, width = self.shape
        return (self._codec.latent_channels, math.ceil(height / stride), math.ceil(width / stride))

    def write(self, batches: Iterable[torch.Tensor], room: int | None) -> Sent:
        """See :class:`Message`."""
        each = math.prod(self.latent_shape)
        limit = None if room is None else max(0, (room - _SCALE_COPIES) // each)
        images = itertools.chain.from_iterable(batch.split(_BATCH) for batch in batches)
        parts: list[torch.Tensor] = []
        while limit is None or sum(map(len, parts)) < limit:
            batch = next(images, None)
            if batch is None:
                break
            parts.append(self._codec.latents(batch).cpu())
        latents = torch.cat(parts)[:limit] if parts else torch.zeros(0, *self.latent_shape)
        scale = float(latents.double().square().mean().sqrt()) if len(latents) else 1.0
        scale = min(max(scale, 2.0**-_LOG_RANGE), 2.0**_LOG_RANGE)
        header = np.full(_SCALE_COPIES, math.log2(scale) / _LOG_RANGE, dtype=np.float32)
        values = (latents.flatten() / _read_scale(header)).numpy().astype(np.float32)
        return Sent(np.concatenate([header, values]), len(latents))

    def code_bytes(self, payload: Payload) -> int:
        """See :class:`Message`."""
        return payload.nbytes - 4 * _SCALE_COPIES

    def count(self, images: int) -> int:
        """See :class:`Message`."""
        return _SCALE_COPIES + images * math.prod(self.latent_shape)

    def read(self, content: Payload, images: int) -> Extraction:
        """See :class:`Message`."""
        numbers = np.asarray(content, dtype=np.float32)
        scale = _read_scale(numbers[:_SCALE_COPIES])
        each = math.prod(self.latent_shape)
        body = numbers[_SCALE_COPIES:][: images * each]
        complete = len(body) // each
        latents = torch.from_numpy(body[: complete * each] * scale)
        latents = latents.reshape(complete, *self.latent_shape)
        whole = latents.flatten(1).isfinite().all(dim=1)
        decoded: list[torch.Tensor | str] = ["lost"] * images
        for positions in torch.nonzero(whole).flatten().split(_BATCH):
            noisy = latents[positions]
            if self.rounding:
                noisy = self._codec.on_grid(noisy)
            restored = self._codec.synthesis(noisy, self.shape)
            for position, image in zip(positions.tolist(), restored, strict=True):
                decoded[position] = image
        sent = numbers[: _SCALE_COPIES + images * each]
        return self._extraction(decoded, sent, None)


def _bytes(content: Payload) -> NDArray[np.uint8]:
    return content.astype(np.uint8, copy=False)


def _read_scale(header: NDArray[np.float32]) -> float:
    """Return the scale that a header tells; 1 where nothing of it is left."""
    usable = header[np.isfinite(header)].astype(np.float64)
    if len(usable) == 0:
        return 1.0
    # The median also survives a few wild values.
    return float(2.0 ** (_LOG_RANGE * np.clip(np.median(usable), -1.0, 1.0)))
