"""Settings of the DEC attack."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fl_sim.attacks.base import AttackSettings
from fl_sim.attacks.outside_codec import component_of
from fl_sim.carriers.base import CARRIERS, Carrier
from fl_sim.codec import CODECS
from fl_sim.coding.base import CODES, UNCODED
from fl_sim.coding.erasure import ErasureSettings
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.files import checksum

CODEC_FILE = ".safetensors"


class DecSettings(AttackSettings):
    """Settings of the DEC attack.

    Args:
        images: how many images are taken, or ``"fit"``: as many as the carrier holds.
        scenario: ``"external"``: the codec was trained outside, on other images, and only codes
            leave; the decoder is part of the key. ``"internal"``: the codec is trained inside, on
            the hospital's images, as a part of the network that leaves; that must be the model
            ``two_headed``.
        codec: in the external scenario: a registered codec and its settings, or a codec file
            (``fl-sim codec train`` writes one).
        external: the dataset, and its settings, that a codec given by name is trained on; trained
            once and kept in the cache. A lossless codec needs none.
        carrier: where in the model file the payload travels, and its settings.
        contents: ``"codes"`` (the paper's Z: entropy codes, one wrong bit spoils an image) or
            ``"latents"`` (the paper's y: decoded latents as numbers, larger and resistant to
            noise).
        rounding: whether the receiver rounds noisy latents to the values that they can have,
            where the codec has such a grid.
        coding: an error-correcting code around the codes, and its settings; ``"none"`` without.
        erasure: parity images, from which lost images are made good; none where not given.
        amplify: in a federation, write so that the average holds the payload, as far as the other
            hospitals do not move its places (dead weights): the broadcast with the payload in it,
            less the broadcast, is added over the attackers' share of the average. Or that share as
            a number, where the aggregation is no weighted mean and the attacker knows what it makes
            of his difference. The receiver needs no broadcast to compare with; the upload itself
            is illegible.
        canonical: whether places are counted with the channels sorted, so that a permutation of
            hidden channels does not move them; see :mod:`fl_sim.attacks.dec.canonical`.
        precision: of the floating-point entries of the file that leaves.
        codec_steps: internal scenario: steps on the codec after each step on the task.

    Example:
        images = "fit"
        codec = "png"
        carrier = {name = "lsb", bits = 16}
    """

    images: int | Literal["fit"] = 64
    scenario: Literal["external", "internal"] = "external"
    codec: Annotated[Component, component_of("codec")] = Component(name="factorized")
    external: Annotated[Component | None, component_of("external")] = None
    carrier: Annotated[Component, component_of("carrier")] = Component(name="lsb")
    contents: Literal["codes", "latents"] = "codes"
    rounding: bool = True
    coding: Annotated[Component, component_of("coding")] = Component(name=UNCODED)
    erasure: ErasureSettings | None = None
    amplify: bool | Annotated[float, Field(gt=0, allow_inf_nan=False)] = False
    canonical: bool = False
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    codec_steps: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill in the defaults of the components, so that they are part of the identity."""
        if self.images != "fit" and self.images < 1:
            raise ValueError(f'images is {self.images}; it is a number from 1, or "fit"')
        fill = partial(object.__setattr__, self)  # frozen: only here, before anyone sees it
        fill("carrier", self.carrier.checked(CARRIERS, "[attack] carrier"))
        if self.carrier.settings.get("kind") == "any":
            kind = "bytes" if self.contents == "codes" else "values"
            fill("carrier", self.carrier.told(kind=kind))
        fill("coding", self.coding.checked(CODES, "[attack] coding"))
        self._check_contents(CARRIERS.get(self.carrier.name))
        if self.scenario == "internal":
            # The codec is the model's; naming one here would say nothing.
            fill("codec", Component(name="internal"))
            fill("external", None)
        elif not self.codec_file:
            fill("codec", self.codec.checked(CODECS, "[attack] codec"))
            self._check_codec()
        return self

    @property
    def codec_file(self) -> Path | None:
        """The codec's file, where it is given as one."""
        return Path(self.codec.name) if self.codec.name.endswith(CODEC_FILE) else None

    def identity(self) -> dict[str, Any]:
        """Name a codec file by its content, wherever it lies."""
        values = super().identity()
        if self.codec_file is not None and self.codec_file.is_file():
            values["codec"]["name"] = checksum(self.codec_file)
        return values

    def _check_contents(self, carrier: type[Carrier[Any]]) -> None:
        kind = "bytes" if self.contents == "codes" else "values"
        if kind not in carrier.carries:
            fitting = [e.name for e in CARRIERS.entries() if kind in e.component.carries]
            raise FlSimError(
                f"[attack] The carrier '{self.carrier.name}' cannot carry {self.contents}; "
                f"these can: {', '.join(fitting)}."
            )
        if self.contents == "latents" and (self.coding.name != UNCODED or self.erasure):
            raise FlSimError(
                "[attack] coding and erasure protect codes; latents stand noise by themselves. "
                'Take contents = "codes" or leave these two out.'
            )
        if self.canonical and (
            carrier.frozen or self.amplify or "exclude" not in carrier.Settings.model_fields
        ):
            raise FlSimError(
                "[attack] canonical sorts the channels of the trained model; it goes with a "
                "carrier that is written into the model's own elements after training, and "
                "without amplify."
            )
        if carrier.frozen and self.scenario == "internal":
            raise FlSimError(
                f"[attack] The carrier '{self.carrier.name}' is written before training, when an "
                f'internally trained codec is not there yet; take scenario = "external".'
            )

    def _check_codec(self) -> None:
        lossless = CODECS.get(self.codec.name).lossless
        if lossless and self.contents == "latents":
            raise FlSimError(
                f"[attack] The lossless codec '{self.codec.name}' has no latents; take contents "
                f'= "codes" or a learned codec.'
            )
        if not lossless and self.external is None:
            raise FlSimError(
                f"[attack] The codec '{self.codec.name}' has to be trained outside: name another "
                f'dataset, for example external = "pneumoniamnist", or a codec file.'
            )
