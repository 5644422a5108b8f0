"""Networks as people have them, made known to the parts of a study."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fl_sim.errors import FlSimError, shown
from fl_sim.models import MODELS, build, check, state_model
from fl_sim.models.base import ModelSpec
from fl_sim.models.lent import Pixels, copied, lend, made
from fl_sim.models.pixels import Normalization, normalization, take_pixels
from fl_sim.models.reachable import leave_out_padding

State = dict[str, torch.Tensor]
Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Given:
    """A network that was handed over.

    Args:
        spec: how the parts of a study know it.
        model: a copy of it, which the parts may change; called with pixels in [-1, 1].
        plain: a copy that takes pixels as its owner's does, for what comes back.
    """

    spec: ModelSpec
    model: nn.Module
    plain: nn.Module

    def back(self, state: State) -> nn.Module:
        """Return the network with other weights, in evaluation mode, as its owner calls it."""
        own = self.plain.state_dict().keys()
        self.plain.load_state_dict({n: v for n, v in state.items() if n in own})
        return self.plain.eval()


def given(
    model: Any,
    pixels: tuple[int, int],
    normalize: Normalization = "symmetric",
    make: Make | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Given:
    """Return a network that somebody hands over.

    Args:
        model: an ``nn.Module``; a function that makes one; or a name: registered, torchvision's,
            ``timm/...`` or ``package.module:function``. Of the last three a fresh one is built.
        pixels: channels and side of its images.
        normalize: how it takes pixels; see :func:`fl_sim.models.pixels.normalization`.
        make: makes a fresh one like ``model``, where copies cannot be initialised anew.
        classes: outputs of a network that has to be built.
        seed: of its initial weights.

    Raises:
        FlSimError: if it is nothing of these, or cannot take such images.
    """
    channels, size = pixels
    mean, std = normalization(normalize, channels)
    taken = Pixels(channels, size, mean, std)
    if isinstance(model, str):
        spec = ModelSpec(
            name=state_model(model),
            channels=channels,
            size=size,
            classes=classes or 2,
            mean=mean,
            std=std,
            task=MODELS.get(model).tasks[0],
        )
        check(spec)
        return Given(spec, build(spec, seed), MODELS.get(spec.name).build(spec))
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise FlSimError(
                f"The model is {shown(model)}; give a torch.nn.Module, a function that makes one, "
                f"or a name."
            )
        make = model
        model = made(model, classes or 2, taken, seed)
    spec = lend(model, taken, make)
    own = copied(model)
    take_pixels(own, spec)
    leave_out_padding(own)
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return Given(spec, own, copied(model))


def fits(state: State, network: nn.Module, what: str) -> None:
    """Refuse a state dictionary that is not of a network.

    Args:
        state: names and tensors; further entries may stand beside the network's.
        network: that it should be of.
        what: it is, for the message, for example ``"The state dictionary"``.

    Raises:
        FlSimError: naming the first entry that is missing or has another shape.
    """
    for name, own in network.state_dict().items():
        if name not in state:
            raise FlSimError(
                f"{what} lacks the entry '{name}' of the network {type(network).__name__}."
            )
        if state[name].shape != own.shape:
            raise FlSimError(
                f"{what} has '{name}' in the shape {list(state[name].shape)}, and the network "
                f"{type(network).__name__} in the shape {list(own.shape)}."
            )
