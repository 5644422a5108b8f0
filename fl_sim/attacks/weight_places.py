"""Which weights carry a value or a bit each, for attacks that write into them while they train.

Only weights of two dimensions and more carry: biases and normalisation's scales live around other
means. Their names and shapes, and a secret seed, are in the key.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import nn

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import AttackSettings, Inside
from fl_sim.attacks.keys import key_images, key_tensors, wrong
from fl_sim.carriers.base import State
from fl_sim.carriers.placement import choose, in_one_order, permutation
from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.plain import LARGEST_INTEGER
from fl_sim.randomness import derive_seed
from fl_sim.settings import Seed, Settings


class WeightSettings(AttackSettings):
    """Keys of attacks that give each value or bit a weight of its own.

    Args:
        tensors: patterns (``*``, ``?``, ``[...]``) of the names of weights that may carry.
        exclude: patterns of names that may not.
    """

    tensors: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


_LOST = 4
"""How much larger than what arrived the network may be that a key speaks of: tensors get lost."""

_SLACK = 1 << 16


@dataclass(frozen=True)
class Part:
    """The places in one tensor.

    Args:
        name: of the tensor.
        shape: of the tensor.
        elements: int64, which of its elements, flattened.
        entries: int64, which entry of the payload each of them carries.
    """

    name: str
    shape: torch.Size
    elements: torch.Tensor
    entries: torch.Tensor


class PlacesKey(Settings):
    """What a key of places says; see :func:`places_key`.

    Args:
        seed: of the order of places.
        weights: shapes of the tensors that carry, by name.
        count: entries of the payload.
    """

    seed: Seed
    weights: dict[str, tuple[int, ...]] = Field(min_length=1)
    count: int = Field(ge=1, le=LARGEST_INTEGER)


def check_places(
    key: Key, places: PlacesKey, artifact: Artifact, beside: int = 0, bits: int = 1
) -> None:
    """Check a key of places, and that its tensors are no more than the model's.

    Args:
        key: the attacker's.
        places: its settings.
        artifact: what is read with it.
        beside: entries beside the images.
        bits: entries for each pixel value.

    Raises:
        FlSimError: naming what is wrong.
    """
    key_tensors(key, {}, {})
    if any(side < 1 for shape in places.weights.values() for side in shape):
        raise wrong(key, "has a tensor of an impossible shape among its weights")
    room = sum(math.prod(shape) for shape in places.weights.values())
    held = sum(tensor.numel() for tensor in artifact.state.values())
    if room > _LOST * held + _SLACK:
        raise wrong(key, f"speaks of {room} weights, and the model file has {held}")
    if places.count > room:
        raise wrong(key, f"has {places.count} entries in {room} weights")
    images, rest = divmod(places.count - beside, bits * math.prod(artifact.spec.input_shape))
    if rest or places.count <= beside:
        raise wrong(key, f"has {places.count} entries, which are no whole number of images")
    key_images(key, images, artifact)


class WeightPlaces:
    """The places of a payload, a weight for each of its entries.

    Blocks of weights are taken in keyed order over all tensors, and the entries are dealt out to
    them in a keyed order of their own: every tensor gets a fair sample of the payload.

    Args:
        key: see :func:`places_key`.
    """

    def __init__(self, key: Key) -> None:
        seed, count = key.settings["seed"], key.settings["count"]
        weights = {n: torch.empty(s, device="meta") for n, s in key.settings["weights"].items()}
        entries = permutation(count, derive_seed(seed, "payload order"))
        self.count = count
        self.parts: list[Part] = []
        for name, ranks in in_one_order(weights, choose(weights), seed):
            elements = np.flatnonzero(ranks < count)
            if len(elements):
                carried = torch.from_numpy(entries[ranks[elements]])
                part = Part(name, weights[name].shape, torch.from_numpy(elements), carried)
                self.parts.append(part)

    def read(self, state: State) -> list[torch.Tensor]:
        """Return the weights of each part, float32; not a number where a tensor does not fit."""
        return [_read(state.get(part.name), part) for part in self.parts]

    def deal(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """Return what each part carries of a payload ``[count]``."""
        return [payload[part.entries] for part in self.parts]

    def gather(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put what each part carries together again; the inverse of :meth:`deal`."""
        payload = torch.full((self.count,), torch.nan)
        for part, own in zip(self.parts, values, strict=True):
            payload[part.entries] = own
        return payload

    def of(self, model: nn.Module) -> "LiveWeights":
        """Return the weights that carry in a network that trains."""
        parameters = dict(model.named_parameters())
        device = next(model.parameters()).device
        return LiveWeights([(parameters[p.name], p.elements.to(device)) for p in self.parts])


class LiveWeights:
    """Weights that carry, read again and again while they train.

    Args:
        places: parameters and which of their elements, flattened.
    """

    def __init__(self, places: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> None:
        self._places = places

    def __call__(self) -> list[torch.Tensor]:
        """Return them part by part; gradients flow back into the network."""
        return [parameter.flatten()[elements] for parameter, elements in self._places]


def places_key(
    attack: str, settings: WeightSettings, inside: Inside, an_image: int, beside: int = 0
) -> Key:
    """Return the key of places for as many images as the settings say.

    Args:
        attack: its registered name.
        settings: of the attack.
        inside: what it finds.
        an_image: how many weights an image takes.
        beside: how many weights are taken beside the images.

    Raises:
        FlSimError: if the network has too few weights that may carry.
    """
    network = build(inside.spec)
    weights = {n: p.detach() for n, p in network.named_parameters() if p.ndim >= 2}
    names = choose(weights, settings.tensors, settings.exclude)
    room = sum(weights[name].numel() for name in names)
    needed = int(settings.images) * an_image + beside
    if needed > room:
        raise FlSimError(
            f"[attack] images is {settings.images}, which take {needed} weights, and the model "
            f"'{inside.spec.name}' has {room} that may carry, enough for "
            f"{max(0, room - beside) // an_image} images; lower images or widen tensors."
        )
    seed = int(inside.stream.numpy("weight places").integers(2**62))
    shapes = {name: list(weights[name].shape) for name in names}
    return Key(attack, {}, {"seed": seed, "weights": shapes, "count": needed})


def filled(images: torch.Tensor) -> torch.Tensor:
    """Give values that are not finite the mean of the others; an image without others stays.

    A tensor that cannot be read has a share of every image, and should not cost them all.

    Args:
        images: ``[n, channels, height, width]``.
    """
    good = images.isfinite()
    known = torch.where(good, images, 0.0).double().sum(dim=(1, 2, 3), keepdim=True)
    mean = known / good.sum(dim=(1, 2, 3), keepdim=True)
    return torch.where(good, images, mean.float())


def _read(tensor: torch.Tensor | None, part: Part) -> torch.Tensor:
    if tensor is None or tensor.shape != part.shape or not tensor.is_floating_point():
        return torch.full((len(part.elements),), torch.nan)
    return tensor.detach().cpu().flatten()[part.elements].float()
