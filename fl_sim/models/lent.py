"""Networks that somebody hands over as they are: any ``torch.nn.Module``, or a function for one.

They become known by a name made of their class and a digest of their structure, for the rest of the
process; nothing has to be registered, and the name tells the same in another process.
"""

import copy
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fl_sim.errors import FlSimError, shown
from fl_sim.faults import cause
from fl_sim.models.base import MODELS, USUAL, ModelEntry, ModelSpec
from fl_sim.models.from_torchvision import take_plain_tensors
from fl_sim.models.pixels import take_pixels
from fl_sim.models.stated import made_by
from fl_sim.models.transposed_vit import TransposedVisionTransformer
from fl_sim.randomness import seeded
from fl_sim.task import TaskFamily

Make = Callable[..., nn.Module]
_RESETS = ("reset_parameters", "_reset_parameters")
_MARK = 77
_TASKS: tuple[TaskFamily, ...] = ("classification", "segmentation")


@dataclass(frozen=True)
class Pixels:
    """What a network is given.

    Args:
        channels: 1 or 3.
        size: side of the square images.
        mean, std: see :class:`fl_sim.models.base.ModelSpec`.
    """

    channels: int
    size: int
    mean: tuple[float, ...] = USUAL
    std: tuple[float, ...] = USUAL


def lend(model: nn.Module, pixels: Pixels, make: Make | None = None) -> ModelSpec:
    """Make a network known that somebody hands over, and return its specification.

    Args:
        model: any network that maps ``[n, channels, size, size]`` to logits ``[n, classes]``, or
            ``[n, classes, size, size]`` for a segmentation. It is copied, not changed.
        pixels: what it is given.
        make: makes a fresh one; called with those of ``classes``, ``channels`` and ``size`` that it
            has arguments for. Without it, fresh ones are copies in which ``reset_parameters`` is
            called everywhere.

    Raises:
        FlSimError: if it cannot be called with such images, returns something else, or ``make``
            makes another network.
    """
    _require_float32(model)
    outputs = _answer(model, pixels)
    spec = ModelSpec(
        name=_name(model),
        channels=pixels.channels,
        size=pixels.size,
        classes=int(outputs.shape[1]),
        mean=pixels.mean,
        std=pixels.std,
        task="classification" if outputs.ndim == 2 else "segmentation",
    )
    entry = _entry(model) if make is None else _made_entry(make)
    if make is not None:
        _require_same(model, entry.build(spec))
    MODELS.lend(spec.name, entry)
    return spec


def lend_for_scenario(model: Any) -> str:
    """Make a network known that a scenario names as an object, and return its name.

    Args:
        model: an ``nn.Module``, from whose weights training starts; or a function that makes one,
            called with those of ``classes``, ``channels`` and ``size`` that it has arguments for.

    Raises:
        FlSimError: if it is neither, or not of float32.
    """
    if isinstance(model, nn.Module):
        _require_float32(model)
        name = _name(model)
        weights = {n: v.detach().cpu().clone() for n, v in model.state_dict().items()}
        MODELS.lend(name, replace(_entry(model), initial=lambda: weights))
        return name
    if not callable(model):
        raise FlSimError(
            f"The model is {shown(model)}; give a name, a torch.nn.Module, or a function that "
            f"makes one."
        )
    name = f"{getattr(model, '__qualname__', type(model).__name__)}@{_digest_of_function(model)}"
    MODELS.lend(name, _made_entry(model))
    return name


def require_answers(spec: ModelSpec, network: nn.Module) -> None:
    """Refuse a network whose answers are not those of a specification.

    Raises:
        FlSimError: if it cannot take such images, or has another number of outputs.
    """
    found = _answer(network, Pixels(spec.channels, spec.size, spec.mean, spec.std))
    if found.shape[1] != spec.classes:
        raise FlSimError(
            f"The network {type(network).__name__} has {found.shape[1]} outputs, and the task "
            f"{spec.classes}."
        )


def _entry(model: nn.Module) -> ModelEntry:
    from torchvision.models import VisionTransformer

    template = _template(model)
    return ModelEntry(
        _Copies(template),
        {"default": 1},
        tasks=_TASKS,
        kept=tuple(_unresettable(template)),
        transposed=TransposedVisionTransformer if isinstance(model, VisionTransformer) else None,
    )


def _made_entry(make: Make) -> ModelEntry:
    return ModelEntry(made_by("make", make), {"default": 1}, tasks=_TASKS)


def _name(model: nn.Module) -> str:
    return f"{type(model).__name__}@{_digest(model)}"


def _digest_of_function(make: Make) -> str:
    """Return eight digits of a function's code, so that one that was changed has another name."""
    code = getattr(make, "__code__", None)
    text = repr(make) if code is None else f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def made(make: Make, classes: int, pixels: Pixels, seed: int) -> nn.Module:
    """Call a function that makes a network, with initial weights drawn from a seed.

    Raises:
        FlSimError: if it raises, or returns no network.
    """
    spec = ModelSpec(name="made", channels=pixels.channels, size=pixels.size, classes=classes)
    with seeded(seed, "initial weights", getattr(make, "__name__", "made")):
        return made_by("make", make)(spec)


class _Copies:
    """Builds a network as a copy of another, with everything initialised anew that can be."""

    def __init__(self, template: nn.Module) -> None:
        self._template = template

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the values of parameters: every message to a hospital has them already."""
        empty = copy.deepcopy(self._template)
        with torch.no_grad():
            for module in empty.modules():
                for name, value in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(torch.empty_like(value, device="meta")))
        return {"template": empty}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._template = state["template"]
        for module in self._template.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.zeros_like(value, device="cpu")))

    def __call__(self, spec: ModelSpec) -> nn.Module:
        network = copy.deepcopy(self._template)
        _reset(network)
        return network


def _template(model: nn.Module) -> nn.Module:
    """Copy a network without what others hung on it, on the CPU."""
    template = copied(model).cpu()
    for parameter in template.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    return template.train()


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a network.

    Raises:
        FlSimError: if it holds something that cannot be copied.
    """
    try:
        own = copy.deepcopy(model)
    except Exception as error:  # whatever a foreign module holds
        raise FlSimError(
            f"The network {type(model).__name__} cannot be copied: {cause(error)}; hand over one "
            f"that copy.deepcopy takes."
        ) from error
    take_plain_tensors(own)
    return own


@torch.no_grad()
def _unresettable(template: nn.Module) -> list[str]:
    """Return the entries of the state dictionary that are not initialised anew in a copy.

    Every value is marked first, so that what a module's own reset leaves out shows.
    """
    marked = copy.deepcopy(template)
    for value in marked.state_dict().values():
        value.fill_(_MARK)
    _reset(marked)
    return [name for name, value in marked.state_dict().items() if bool((value == _MARK).any())]


def _reset(network: nn.Module) -> None:
    for module in network.modules():
        for name in _RESETS:
            if hasattr(module, name):
                getattr(module, name)()
                break


def _require_float32(model: nn.Module) -> None:
    parameters = list(model.parameters())
    if not parameters:
        raise FlSimError(f"The network {type(model).__name__} has no parameters.")
    other = next((p.dtype for p in parameters if p.dtype != torch.float32), None)
    if other is not None:
        raise FlSimError(
            f"The network {type(model).__name__} has {str(other).removeprefix('torch.')} weights; "
            f"hand over model.float()."
        )


@torch.no_grad()
def _answer(model: nn.Module, pixels: Pixels) -> torch.Tensor:
    """Return what a network answers to two empty images."""
    network = copied(model).eval()
    spec = ModelSpec(
        name="probe",
        channels=pixels.channels,
        size=pixels.size,
        classes=1,
        mean=pixels.mean,
        std=pixels.std,
    )
    take_pixels(network, spec)
    shape = (2, pixels.channels, pixels.size, pixels.size)
    words = f"The network {type(model).__name__}"
    images = f"images of {pixels.channels} channels and {pixels.size} x {pixels.size} pixels"
    answers: dict[str, Any] = {}
    for mode in ("evaluation", "training"):
        network.train(mode == "training")
        try:
            answers[mode] = network(torch.zeros(shape, device=next(network.parameters()).device))
        except Exception as error:  # whatever a foreign forward method raises
            raise FlSimError(f"{words} cannot take {images}: {cause(error)}.") from error
        if not isinstance(answers[mode], torch.Tensor):
            kind = type(answers[mode]).__name__
            raise FlSimError(
                f"{words} returns a {kind} in {mode}, where one tensor of logits is needed; wrap "
                f"it in a module that returns that (with torchvision: aux_logits=False)."
            )
    outputs: torch.Tensor = answers["evaluation"]
    images_out = outputs.ndim == 4 and tuple(outputs.shape[2:]) == shape[2:]
    if len(outputs) != 2 or not (outputs.ndim == 2 or images_out) or outputs.shape[1] < 2:
        raise FlSimError(
            f"{words} maps {images} to a tensor of shape {shown(list(outputs.shape))[1:-1]} for "
            f"two of them, where logits [2, classes] with two classes or more are needed, or [2, "
            f"classes, {pixels.size}, {pixels.size}] for a segmentation."
        )
    return outputs


def _digest(model: nn.Module) -> str:
    """Return eight digits that tell networks of another structure apart."""
    entries = [(n, tuple(v.shape), str(v.dtype)) for n, v in model.state_dict().items()]
    text = f"{type(model).__module__}\n{model!r}\n{entries}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _require_same(model: nn.Module, other: nn.Module) -> None:
    """Refuse a function that makes a network of another structure."""
    own, new = model.state_dict(), other.state_dict()
    for name in own.keys() | new.keys():
        if name not in own or name not in new or own[name].shape != new[name].shape:
            raise FlSimError(
                f"make returns a network of another structure than the one handed over: they "
                f"differ in '{name}'."
            )
