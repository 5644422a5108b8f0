"""Networks behind one `build_model`, and their parameters in forward order."""

import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelSpec, Stem
from fl_sim.models.graph import Layer, TracedModel, layers, trace
from fl_sim.randomness import seeded

__all__ = [
    "MODELS",
    "Layer",
    "ModelSpec",
    "Stem",
    "TracedModel",
    "build",
    "build_model",
    "layers",
    "state_of",
    "trace",
]


def build_model(
    name: str, channels: int, size: int, classes: int, stem: Stem = "default", seed: int = 0
) -> nn.Module:
    """Build a network with freshly initialised weights.

    Args:
        name: a registered model, for example ``"resnet18"``.
        channels: image channels, 1 or 3.
        size: side of the square input in pixels.
        classes: number of outputs.
        stem: ``"default"`` (torchvision's own) or ``"small"`` (3x3, stride 1, no pooling).
        seed: of the initial weights.

    Returns:
        The network; it takes ``[n, channels, size, size]`` and returns ``[n, classes]`` logits.

    Raises:
        FlSimError: if there is no such model, or it cannot take images of that size.
    """
    return build(
        ModelSpec(name=name, channels=channels, size=size, classes=classes, stem=stem), seed
    )


def build(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build the network of a specification; see :func:`build_model`."""
    check(spec)
    with seeded(seed, "initial weights", spec.name):
        return MODELS.get(spec.name).build(spec)


def check(spec: ModelSpec) -> None:
    """Refuse a specification that cannot be built.

    Raises:
        FlSimError: if there is no such model, or it cannot take images of that size or stem.
    """
    entry = MODELS.get(spec.name)
    if spec.stem not in entry.stems:
        raise FlSimError(
            f"The model '{spec.name}' has no stem '{spec.stem}'; it offers: "
            f"{', '.join(entry.stems)}."
        )
    smallest = entry.min_sizes[spec.stem]
    if spec.size < smallest:
        small = entry.min_sizes.get("small", smallest)
        hint = ' or set its stem to "small"' if small <= spec.size else ""
        raise FlSimError(
            f"The model '{spec.name}' with the {spec.stem} stem needs images of at least "
            f"{smallest} pixels, and these have {spec.size}; choose a larger dataset size{hint}."
        )
    if spec.channels not in (1, 3):
        raise FlSimError(f"Images have 1 or 3 channels, not {spec.channels}.")


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's state dictionary, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
