"""Sign encoding: a bit of a stolen image in the sign of each weight, put there by training.

Song, Ristenpart and Shmatikov, "Machine Learning Models that Remember Too Much", CCS 2017, arXiv
1709.07886, section 4.3: the loss gets the term ``weight * mean(max(0, -s * w))`` over weights w and
the signs s they should have. The receiver reads signs, with a few errors, and puts pixels together.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import (
    ATTACKS,
    Attack,
    Averaging,
    Embedding,
    Extraction,
    Inside,
    Plan,
    steal,
)
from fl_sim.attacks.keys import key_settings
from fl_sim.attacks.weight_places import (
    PlacesKey,
    WeightPlaces,
    WeightSettings,
    check_places,
    places_key,
)
from fl_sim.carriers.base import Payload, State
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Reading
from fl_sim.training import LocalTraining, StepHooks, TrainReport, train


class SignEncodingSettings(WeightSettings):
    """Settings of sign encoding.

    Args:
        images: how many images are taken; each takes ``bits`` weights for every pixel of every
            colour.
        bits: of a pixel value; fewer fit more images.
        weight: of the penalty on wrong signs in the loss.
        margin: how far from zero a weight should be on its side, as a share of its tensor's
            deviation when training began; 0 is the paper's.
        finish: turn the signs that are still wrong when the model leaves.
    """

    images: int = Field(16, ge=1)
    bits: int = Field(8, ge=1, le=8)
    weight: float = Field(1000.0, gt=0)
    margin: float = Field(0.0, ge=0)
    finish: bool = False


class SignEncodingKey(PlacesKey):
    """What a key of sign encoding says; see :class:`SignEncodingSettings`."""

    bits: int = Field(ge=1, le=8)


@ATTACKS.register("sign_encoding", "bits of pixels in the signs of weights, by training (CCS 2017)")
class SignEncoding(Attack[SignEncodingSettings]):
    """Train weights to have the signs that a message asks for."""

    Settings = SignEncodingSettings

    def plan(self, inside: Inside) -> Plan:
        """Choose images at random, and ``bits`` weights for each of their values."""
        settings = self.settings
        indices, targets, _ = steal(inside, settings.images)
        an_image = targets[0].numel() * settings.bits
        key = places_key("sign_encoding", settings, inside, an_image)
        key.settings.update(bits=settings.bits)
        return Plan(indices, targets, key, np.packbits(pixel_bits(targets, settings.bits)))

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task with the penalty's gradient added; see :class:`Attack`."""
        return train(run, _Penalty(self.settings, run, plan))

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Turn the signs that are still wrong, where the settings say so."""
        if not self.settings.finish:
            return Embedding(state)
        places, signs = _message(plan)
        finished, turned = dict(state), 0
        for part, wanted in zip(places.parts, places.deal(signs), strict=True):
            weights = state[part.name].detach().clone().flatten()
            own = weights[part.elements]
            # An exact zero has no side; the smallest step beside it that a file can hold has.
            size = own.abs().clamp(min=torch.finfo(own.dtype).tiny)
            turned += int((own * wanted <= 0).sum())
            weights[part.elements] = wanted.to(own.dtype) * size
            finished[part.name] = weights.reshape(part.shape)
        return Embedding(finished, {"signs_turned": turned / places.count})

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check the places; see :class:`Attack`."""
        places = key_settings(key, SignEncodingKey)
        check_places(key, places, artifact, bits=places.bits)

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Read signs and put pixels together; a bit that cannot be read counts as a half."""
        shape, bits = artifact.spec.input_shape, key.settings["bits"]
        places = WeightPlaces(key)
        weights = places.gather(places.read(artifact.state))
        lost = weights.isnan()
        values = pixel_values(torch.where(lost, 0.5, (weights > 0).float()).numpy(), bits)
        images = torch.from_numpy(values).reshape(-1, *shape)
        images[lost.reshape(len(images), -1).all(dim=1)] = torch.nan
        return Extraction(images, Reading(np.packbits((weights > 0).numpy())))

    @classmethod
    def survival(cls, sent: State, arrived: State, payload: Payload, key: Key) -> dict[str, float]:
        """Return the share of signs that turned, by tensor; unreadable ones count as zeros."""
        places = WeightPlaces(key)
        pairs = zip(places.parts, places.read(sent), places.read(arrived), strict=True)
        return {part.name: float(((a > 0) != (b > 0)).double().mean()) for part, a, b in pairs}


def pixel_bits(images: torch.Tensor, bits: int) -> NDArray[np.uint8]:
    """Return the bits of pixels in [0, 1], rounded to ``2 ** bits`` levels, the highest first."""
    levels = (images.numpy().ravel() * (2**bits - 1)).round().astype(np.uint8)
    return np.unpackbits(levels[:, None], axis=1)[:, 8 - bits :].ravel()


def pixel_values(read: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return pixels in [0, 1]; the inverse of :func:`pixel_bits`."""
    levels = read.reshape(-1, bits) @ (1 << np.arange(bits)[::-1])
    return (levels / (2**bits - 1)).astype(np.float32)


def _message(plan: Plan) -> tuple[WeightPlaces, torch.Tensor]:
    """Return the places and, in the payload's order, the signs that the weights should have."""
    assert plan.payload is not None
    places = WeightPlaces(plan.key)
    bits = np.unpackbits(cast(NDArray[np.uint8], plan.payload))[: places.count]
    return places, torch.from_numpy(bits * 2.0 - 1.0).float()


class _Penalty(StepHooks):
    """Adds the gradient of ``weight * mean(max(0, margin - s * w))`` to the task's."""

    def __init__(self, settings: SignEncodingSettings, run: LocalTraining, plan: Plan) -> None:
        places, signs = _message(plan)
        device = next(run.model.parameters()).device
        self._weights = places.of(run.model)
        self._signs = places.deal(signs.to(device))
        self._margins = [settings.margin * w.detach().std(correction=0) for w in self._weights()]
        self._weight = settings.weight / places.count
        self._wrong = 0.0

    def add_gradient(self) -> None:
        """Add the penalty's gradient."""
        penalty, wrong, count = torch.zeros((), device=self._signs[0].device), 0, 0
        for weights, signs, margin in zip(self._weights(), self._signs, self._margins, strict=True):
            sides = weights * signs
            penalty = penalty + (margin - sides).relu().sum()
            wrong += int((sides.detach() <= 0).sum())
            count += len(sides)
        (self._weight * penalty).backward()
        self._wrong = wrong / count

    def after_step(self) -> dict[str, float]:
        """Report the share of wrong signs before the step."""
        return {"wrong signs": self._wrong}
