"""Settings of the answers attack."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_sim.attacks.base import AttackSettings
from fl_sim.attacks.outside_codec import component_of
from fl_sim.codec import CODECS
from fl_sim.coding.base import CODES, UNCODED
from fl_sim.component import Component
from fl_sim.defenses.base import DEFENSES

UNREHEARSED = "none"
PUBLIC = "public"
"""What ``external`` is called where the codec is fitted to the public images."""

Modulation = Literal["lattice", "sign"]
Asked = Literal["features", "triggers", "memories"]


class AnswersSettings(AttackSettings):
    """Settings of the answers attack.

    Args:
        images: how many images are taken.
        codec: a registered codec and its settings, trained outside.
        external: the dataset, and its settings, that the codec is trained on, or ``"public"``: the
            public images that the attacker has anyway; a lossless codec needs none.
        frame: bytes for each image: a length, a checksum of two bytes, and the code, padded, or
            where all codes have one length, a checksum of one byte and the code; images whose
            codes are longer are not taken.
        coding: an error-correcting code around the frames, and its settings; ``"none"`` without.
        asked: what the receiver asks about. ``"features"``: public images, for how the answers
            depend on their features; ``"triggers"``: public images with a faint pattern, a
            feature's axis, for what that changes; ``"memories"``: public images with answers of
            their own.
        features: numbers of an image that answers depend on, the strongest principal components of
            public images at ``side`` pixels; or how many patterns, or memorised images.
        trigger: size of a pattern, in standard deviations of its feature.
        side: pixels a side that images are averaged down to before that.
        spare: directions between the classes' mean features that are left alone, since that is
            where a model's ranking lives; none in a task with several labels an image.
        strength: root mean square of what is added to the logits of an image.
        modulation: where a coefficient is put to mean a bit: ``"lattice"``, to the nearest point of
            one of two interleaved lattices, so that what the model answers by itself does not
            disturb (dirty paper); ``"sign"``, above or below zero.
        share: of the way to the nearest point of a lattice that a coefficient is moved; what is
            left disturbs, but points are farther apart for the same strength.
        last: what is reckoned to arrive of the last feature's coefficients, over what arrives of
            the first one's; bits are as much smaller there.
        rehearsed: the defence that the attacker expects, with its settings, or ``"none"``: he
            reckons with a release as handed over.
        held_out: images of the owner's held-out set, as the attacker guesses.
        rehearsals: how often he plays the defence, on images of the hospital, before the last pass;
            once before the others.
        preparation: optimizer steps in which the network first learns its task further, in all
            orientations: what a better network ranks better pays for what is written.
        passes: how often he writes, each time corrected by what the rehearsal lost.
        steps: optimizer steps of each pass.
        learning_rate: of preparation and passes, at its highest; it falls to zero along half a
            cosine in each.

    Example:
        images = 1
        external = "pneumoniamnist"
        strength = 0.7
    """

    images: int = Field(1, ge=1)
    codec: Annotated[Component, component_of("codec")] = Component(name="factorized")
    external: Annotated[Component | None, component_of("external")] = None
    frame: int = Field(40, ge=2, le=258)
    coding: Annotated[Component, component_of("coding")] = Component(name=UNCODED)
    asked: Asked = "features"
    features: int = Field(96, ge=1, le=4096)
    trigger: float = Field(3.0, gt=0, le=20)
    side: int = Field(7, ge=1, le=64)
    spare: int = Field(6, ge=0, le=64)
    strength: float = Field(1.0, gt=0, le=100)
    modulation: Modulation = "lattice"
    share: float = Field(0.8, gt=0, le=1)
    last: float = Field(0.4, gt=0, le=1)
    rehearsed: Annotated[Component, component_of("rehearsed")] = Component(
        name="consistent_distillation"
    )
    held_out: int = Field(1000, ge=2, le=1_000_000)
    rehearsals: int = Field(1, ge=1, le=64)
    preparation: int = Field(1000, ge=0)
    passes: int = Field(2, ge=1, le=16)
    steps: int = Field(500, ge=1)
    learning_rate: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Check the components and fill in their defaults, so that they are part of identity."""
        filled = {
            "codec": self.codec.checked(CODECS, "[attack] codec"),
            "coding": self.coding.checked(CODES, "[attack] coding"),
        }
        if self.rehearsed.name != UNREHEARSED:
            filled["rehearsed"] = self.rehearsed.checked(DEFENSES, "[attack] rehearsed")
        for name, value in filled.items():
            object.__setattr__(self, name, value)  # frozen: only here, before anyone sees it
        if self.external is None and not CODECS.get(self.codec.name).lossless:
            raise ValueError(
                f"the codec '{self.codec.name}' has to be trained outside: name another dataset, "
                f'for example external = "pneumoniamnist", or "public"'
            )
        if self.external is not None and self.external.name == PUBLIC and self.external.settings:
            raise ValueError('external = "public" are the public images, which have no settings')
        return self
