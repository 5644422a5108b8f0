"""Correlated value encoding: weights pulled, while they train, towards pixels of stolen images.

Song, Ristenpart and Shmatikov, "Machine Learning Models that Remember Too Much", CCS 2017, arXiv
1709.07886, section 4.2: the loss gets the term ``-weight * |r|``, with Pearson's correlation r of
pixel values and as many weights. The receiver scales the weights to pixels again.

Beyond the paper, a few known values travel along, by which the receiver finds sign, scale and shift
(the paper maps the smallest and largest weight to black and white, and tries both signs); and the
weights of each tensor may have their own mean and deviation, so that layers of unlike scale need
not become alike.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import ATTACKS, Attack, Extraction, Inside, Plan, steal
from fl_sim.attacks.keys import key_settings
from fl_sim.attacks.weight_places import (
    PlacesKey,
    WeightPlaces,
    WeightSettings,
    check_places,
    filled,
    places_key,
)
from fl_sim.carriers.base import Payload, State, relative_error
from fl_sim.payload.reading import Reading
from fl_sim.training import LocalTraining, StepHooks, TrainReport, train

Scope = Literal["tensor", "all"]
_FEW = 64


class CorrelatedSettings(WeightSettings):
    """Settings of correlated value encoding.

    Args:
        images: how many images are taken; each takes a weight for every pixel of every colour.
        weight: of the correlation in the loss.
        scope: whether the weights of each ``"tensor"`` are brought to mean 0 and deviation 1
            before they are correlated with pixels, and before they are read; or those of
            ``"all"`` tensors together, as in the paper.
        pilot: number of known values that travel with the images.
    """

    images: int = Field(64, ge=1)
    weight: float = Field(30.0, gt=0)
    scope: Scope = "tensor"
    pilot: int = Field(256, ge=16)


class CorrelatedKey(PlacesKey):
    """What a key of correlated value encoding says; see :class:`CorrelatedSettings`."""

    pilot: int = Field(ge=16)
    scope: Scope


@ATTACKS.register("correlated", "weights trained to correlate with pixels (CCS 2017)")
class Correlated(Attack[CorrelatedSettings]):
    """Train weights to be pixels, up to scale and shift."""

    Settings = CorrelatedSettings

    def plan(self, inside: Inside) -> Plan:
        """Choose images at random, and a weight for each of their values."""
        settings = self.settings
        indices, targets, _ = steal(inside, settings.images)
        key = places_key("correlated", settings, inside, targets[0].numel(), settings.pilot)
        key.settings.update(pilot=settings.pilot, scope=settings.scope)
        payload = np.concatenate([_pilot(settings.pilot), targets.numpy().ravel()])
        return Plan(indices, targets, key, payload)

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task with the correlation's gradient added; see :class:`Attack`."""
        return train(run, _Correlation(self.settings, run, plan))

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check the places; see :class:`Attack`."""
        places = key_settings(key, CorrelatedKey)
        check_places(key, places, artifact, beside=places.pilot)

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Read the weights and scale them so that the known values come out right."""
        shape, pilot = artifact.spec.input_shape, key.settings["pilot"]
        places = WeightPlaces(key)
        parts = places.read(artifact.state)
        if key.settings["scope"] == "tensor":
            parts = [standardised(part) for part in parts]
        values = _scaled(places.gather(parts), torch.from_numpy(_pilot(pilot)))
        images = filled(values[pilot:].reshape(-1, *shape))
        return Extraction(images, Reading(values.numpy()))

    @classmethod
    def survival(cls, sent: State, arrived: State, payload: Payload, key: Key) -> dict[str, float]:
        """Return how far the weights that carry moved, relative to their size, by tensor."""
        places = WeightPlaces(key)
        pairs = zip(places.parts, places.read(sent), places.read(arrived), strict=True)
        return {part.name: relative_error(a.numpy(), b.numpy()) for part, a, b in pairs}


def pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of two vectors; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)


def standardised(values: torch.Tensor) -> torch.Tensor:
    """Bring values to mean 0 and deviation 1; those too few to tell these are not a number."""
    if len(values) < _FEW:
        return torch.full_like(values, torch.nan)
    return (values - values.mean()) / values.std(correction=0)


def _pilot(count: int) -> NDArray[np.float32]:
    """Return the known values, black and white in turn: as far apart as pixels can be."""
    return (np.arange(count) % 2).astype(np.float32)


def _scaled(values: torch.Tensor, pilot: torch.Tensor) -> torch.Tensor:
    """Undo the scale and shift that the known values at the front have suffered."""
    arrived = values[: len(pilot)].double()
    good = arrived.isfinite()
    black, white = (arrived[good & (pilot == level)].mean() for level in (0.0, 1.0))
    return ((values.double() - black) / (white - black)).float()


class _Correlation(StepHooks):
    """Adds the gradient of ``-weight * |r|`` to the task's."""

    def __init__(self, settings: CorrelatedSettings, run: LocalTraining, plan: Plan) -> None:
        assert plan.payload is not None
        places = WeightPlaces(plan.key)
        device = next(run.model.parameters()).device
        self._weights = places.of(run.model)
        self._wanted = places.deal(torch.from_numpy(plan.payload).to(device))
        self._settings = settings
        self._value = 0.0

    def add_gradient(self) -> None:
        """Add the correlation's gradient."""
        weights, wanted = self._weights(), self._wanted
        if self._settings.scope == "all":
            weights, wanted = [torch.cat(weights)], [torch.cat(wanted)]
        count = sum(len(part) for part in wanted)
        shares = [pearson(w, p) * (len(p) / count) for w, p in zip(weights, wanted, strict=True)]
        correlation = torch.stack(shares).sum()
        (-self._settings.weight * correlation.abs()).backward()
        self._value = float(correlation.detach().abs())

    def after_step(self) -> dict[str, float]:
        """Report the correlation before the step."""
        return {"correlation": self._value}
