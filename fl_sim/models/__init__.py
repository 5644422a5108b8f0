"""Networks behind one `build_model`, and their parameters in forward order."""

from typing import Any

import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelSpec, Stem
from fl_sim.models.graph import Layer, TracedModel, absorbed_biases, layers, trace
from fl_sim.models.pixels import take_pixels
from fl_sim.models.reachable import leave_out_padding
from fl_sim.models.skeleton import skeleton
from fl_sim.models.stated import state_model
from fl_sim.randomness import seeded
from fl_sim.settings import parse
from fl_sim.task import TaskFamily

__all__ = [
    "MODELS",
    "Layer",
    "ModelSpec",
    "Stem",
    "TaskFamily",
    "TracedModel",
    "absorbed_biases",
    "build",
    "build_model",
    "check_task",
    "fresh",
    "layers",
    "skeleton",
    "state_model",
    "state_of",
    "trace",
]


def build_model(
    name: str,
    channels: int,
    size: int,
    classes: int,
    stem: Stem = "default",
    seed: int = 0,
    *,
    task: TaskFamily | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network with freshly initialised weights.

    Args:
        name: a registered model, for example ``"resnet18"``; any classifier of torchvision's; or
            a function that was stated (:func:`state_model`).
        channels: image channels, 1 or 3.
        size: side of the square input in pixels.
        classes: number of outputs, of an image or of each pixel.
        stem: ``"default"`` (torchvision's own) or ``"small"`` (3x3, stride 1, no pooling).
        seed: of the initial weights.
        task: ``"classification"`` or ``"segmentation"``; where not given, the model's first.
        settings: the model's own keys.

    Returns:
        The network; it takes ``[n, channels, size, size]`` and returns logits: ``[n, classes]``,
        or for a segmentation ``[n, classes, size, size]``.

    Raises:
        FlSimError: if there is no such model, or it cannot take images of that size.
    """
    spec = ModelSpec(
        name=name,
        channels=channels,
        size=size,
        classes=classes,
        stem=stem,
        task=task or MODELS.get(name).tasks[0],
        settings=settings or {},
    )
    return build(spec, seed)


def build(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build the network of a specification, which takes pixels in [-1, 1]; see :func:`build_model`.

    Where the specification says that its pixels are others, it maps them itself. Its convolutions
    leave out what meets only padding.
    """
    check(spec)
    with seeded(seed, "initial weights", spec.name):
        network = MODELS.get(spec.name).build(spec)
    take_pixels(network, spec)
    leave_out_padding(network)
    return network


def fresh(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build a network of which no value comes from elsewhere; see :func:`build`.

    Raises:
        FlSimError: if a part of it cannot be initialised anew.
    """
    kept = MODELS.get(spec.name).kept
    if kept:
        raise FlSimError(
            f"A fresh {spec.name.partition('@')[0]} cannot be made of the one that is there: no "
            f"reset_parameters initialises its '{kept[0]}' anew; give a function that makes a new "
            f'network (make=..., or model = "package.module:function").'
        )
    return build(spec, seed)


def check_task(name: str, task: TaskFamily) -> None:
    """Refuse a network that is for another kind of task.

    Raises:
        FlSimError: naming networks that are for it.
    """
    tasks = MODELS.get(name).tasks
    if task not in tasks:
        fitting = [e.name for e in MODELS.entries() if task in e.component.tasks]
        raise FlSimError(
            f"The model '{name}' is for {' and '.join(tasks)}, and the dataset's task is {task}; "
            f"choose one of: {', '.join(fitting)}."
        )


def check(spec: ModelSpec) -> None:
    """Refuse a specification that cannot be built.

    Raises:
        FlSimError: if there is no such model, it is for another task, it cannot take images of
            that size or stem, or a key of its own is wrong.
    """
    entry = MODELS.get(spec.name)
    check_task(spec.name, spec.task)
    parse(entry.settings, spec.settings, f"The model '{spec.name}'")
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
