"""The route of a payload: what sender and receiver have agreed on, as it stands in the key."""

import zlib
from dataclasses import dataclass
from glob import escape
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.dec.canonical import Canonical, sorted_groups
from fl_sim.attacks.dec.message import Codes, Latents, Message
from fl_sim.attacks.keys import key_images, key_settings, wrong
from fl_sim.attacks.outside_codec import decoder_of, decoder_tensors
from fl_sim.carriers.base import CARRIERS, Carrier, Payload, State
from fl_sim.codec import Codec, ImageShape, LearnedCodec
from fl_sim.coding.base import CODES, UNCODED, code_of
from fl_sim.coding.envelope import Envelope
from fl_sim.coding.erasure import ErasureSettings
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.plain import LARGEST_INTEGER
from fl_sim.settings import Seed, Settings

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ATTACK = "dec"
_TABLES = "tables."
_LARGEST_TABLES = 1 << 26


class RouteKey(Settings):
    """A route as it stands in a key; see :class:`Route`."""

    carrier: Component
    seed: Seed
    contents: Literal["codes", "latents"]
    rounding: bool
    precision: Literal["float32", "float16", "bfloat16"]
    images: int = Field(ge=0)
    shape: tuple[int, int, int]
    spec: ModelSpec
    coding: Component
    erasure: ErasureSettings | None
    length: int | None = Field(None, ge=0, le=LARGEST_INTEGER)
    canonical: bool = False


class DecKey(Settings):
    """What a key of the DEC attack says.

    Args:
        route: how the payload travels.
        codec: name and settings of the decoder; ``None`` where it is inside the model.
    """

    route: RouteKey
    codec: tuple[str, dict[str, Any]] | None = None


class Received(NamedTuple):
    """What a receiver got: as the carrier delivered it, and after error correction."""

    raw: Payload
    payload: Payload


@dataclass(frozen=True)
class Route:
    """How a payload travels.

    Args:
        carrier: where in the model file, with its settings.
        seed: the carrier's secret.
        contents: ``"codes"`` or ``"latents"``.
        rounding, precision: see :class:`fl_sim.attacks.dec.settings.DecSettings`.
        images: how many images were to be sent.
        shape: of an image.
        spec: the network that carries.
        coding: error correction around the payload.
        erasure: parity images.
        length: of the payload in bytes before coding, where it is known before training.
        canonical: whether the carrier sees the network's channels sorted.
    """

    carrier: Component
    seed: int
    contents: str
    rounding: bool
    precision: str
    images: int
    shape: ImageShape
    spec: ModelSpec
    coding: Component
    erasure: ErasureSettings | None
    length: int | None = None
    canonical: bool = False

    @classmethod
    def of(cls, key: Key) -> "Route":
        """Read the route from a key.

        Raises:
            FlSimError: if a part of it is missing, unknown or impossible.
        """
        known = key_settings(key, DecKey).route
        carrier = known.carrier.checked(CARRIERS, "The route's carrier")
        coding = known.coding
        if coding.name != UNCODED:
            coding = coding.checked(CODES, "The route's coding")
        parts = {name: getattr(known, name) for name in RouteKey.model_fields}
        return cls(**{**parts, "carrier": carrier, "coding": coding})

    def check(self, key: Key, artifact: Artifact) -> None:
        """Check that the route leads through this model file.

        Raises:
            FlSimError: if it is of another network, or longer than the file.
        """
        if self.spec != artifact.spec or self.shape != artifact.spec.input_shape:
            raise wrong(key, "is for another network or other images than the model file's")
        kind = CARRIERS.get(self.carrier.name)
        if ("bytes" if self.contents == "codes" else "values") not in kind.carries:
            raise wrong(
                key, f"has the carrier '{self.carrier.name}', which holds no {self.contents}"
            )
        if self.contents == "latents" and (self.coding.name != UNCODED or self.erasure):
            raise wrong(key, "protects latents, which no attack does")
        if self.canonical and (kind.frozen or "exclude" not in kind.Settings.model_fields):
            raise wrong(key, f"sorts channels for the carrier '{self.carrier.name}'")
        held = sum(tensor.nbytes for tensor in artifact.state.values())
        if self.images > held or (self.length or 0) > held:
            raise wrong(
                key,
                f"is for {self.images} images in {self.length or 'any number of'} bytes, and the "
                f"model file has {held} bytes",
            )
        key_images(key, self.images, artifact)

    def key(self, codec: Codec[Any] | None) -> Key:
        """Return the key of this route; it holds the decoder where that does not leave inside."""
        route = {
            "carrier": self.carrier.model_dump(mode="json"),
            "seed": self.seed,
            "contents": self.contents,
            "rounding": self.rounding,
            "precision": self.precision,
            "images": self.images,
            "shape": list(self.shape),
            "spec": self.spec.model_dump(mode="json"),
            "coding": self.coding.model_dump(mode="json"),
            "erasure": self.erasure and self.erasure.model_dump(mode="json"),
            "length": self.length,
            "canonical": self.canonical,
        }
        if codec is None:
            return Key(ATTACK, {}, {"route": route})
        named = [codec.name, codec.settings.model_dump(mode="json")]
        return Key(ATTACK, decoder_tensors(codec), {"route": route, "codec": named})

    def cast(self, state: State) -> State:
        """Return a state dictionary with floating-point entries in the route's precision."""
        dtype = _DTYPES[self.precision]
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}

    def places(self, spec: ModelSpec) -> State:
        """Return a state dictionary of the shapes and dtypes that sender and receiver agree on."""
        return self.cast(build(spec).state_dict())

    def open_carrier(self) -> Carrier[Any]:
        """Build the carrier."""
        kind = CARRIERS.get(self.carrier.name)
        settings = self.carrier.settings
        if self.canonical:
            vectors = [escape(one.key.tensor) for one in sorted_groups(self.spec)]
            settings = settings | {"exclude": [*settings["exclude"], *vectors]}
        carrier = kind(kind.Settings.model_validate(settings), self.seed, self.spec)
        return Canonical(carrier, self.spec) if self.canonical else carrier

    def room(self, state: State) -> int | None:
        """Return how long a payload this state can carry after coding; ``None`` for no limit."""
        capacity, envelope = self.open_carrier().capacity(state), self._envelope()
        return capacity if capacity is None or envelope is None else envelope.room(capacity)

    def seal(self, payload: Payload) -> Payload:
        """Return what the carrier is given to carry for a payload."""
        envelope = self._envelope()
        return payload if envelope is None else envelope.seal(payload.astype(np.uint8, copy=False))

    def unsealed(self, carried: Payload) -> Payload:
        """Return the payload in what an undisturbed carrier carries; the inverse of `seal`."""
        envelope = self._envelope()
        if envelope is None:
            return carried
        return envelope.open_bytes(carried.astype(np.uint8, copy=False)).payload

    def receive(self, state: State, like: State, count: int | None) -> "Received":
        """Read the carrier and correct what it delivers.

        Args:
            state: as it arrived.
            like: see :meth:`places`.
            count: bytes or values to read where there is no coding; by default all there is.
        """
        carrier, envelope = self.open_carrier(), self._envelope()
        if envelope is None:
            content = carrier.read(state, count, like)
            return Received(content, content)
        capacity = carrier.capacity(like)
        if capacity is None:
            capacity = len(carrier.read(state, None, like))
        opened = envelope.open(
            lambda size: carrier.read_soft(state, size, like), capacity, self.length
        )
        return Received(opened.raw, opened.payload)

    def _envelope(self) -> Envelope | None:
        code = code_of(self.coding, self.seed)
        return None if code is None else Envelope(code)

    def message(self, codec: Codec[Any], tables: bytes = b"") -> Message:
        """Return how images and payload become each other with this codec."""
        if self.contents == "codes":
            return Codes(codec, self.shape, tables, self.erasure)
        if not isinstance(codec, LearnedCodec):
            raise FlSimError(f"The codec '{codec.name}' has no latents.")
        return Latents(codec, self.shape, self.rounding)


def decoder(key: Key, artifact: Artifact) -> Codec[Any]:
    """Return the receiver's codec: the key's, or the one inside the artifact."""
    known = key_settings(key, DecKey).codec
    if known is None:
        return codec_inside(artifact.model())
    return decoder_of(key, known)


def codec_inside(model: torch.nn.Module) -> LearnedCodec[Any]:
    """Return the codec that a two-headed network contains.

    Raises:
        FlSimError: if it contains none.
    """
    codec = getattr(model, "inner", None)
    if not isinstance(codec, LearnedCodec):
        raise FlSimError(
            '[attack] scenario = "internal" trains a codec inside the network that leaves; it '
            'needs [model] name = "two_headed".'
        )
    return codec


def pack_tables(codec: Codec[Any]) -> bytes:
    """Return a codec's entropy tables as compressed bytes, to travel with the codes."""
    tables = {n: t for n, t in codec.tensors(decoder_only=True).items() if n.startswith(_TABLES)}
    return zlib.compress(save(tables), 9)


def unpack_tables(packed: bytes) -> dict[str, torch.Tensor] | None:
    """Return entropy tables that travelled with the codes; ``None`` if they are damaged."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(packed, _LARGEST_TABLES)
        return load(content)
    except (zlib.error, SafetensorError, ValueError, KeyError):
        return None


def give_tables(codec: Codec[Any], tables: dict[str, torch.Tensor] | None) -> bool:
    """Give a codec the tables that travelled; ``False`` if they are damaged or do not fit."""
    if tables is None:
        return False
    try:
        codec.load_tensors(codec.tensors() | tables)
    except FlSimError:
        return False
    return True
