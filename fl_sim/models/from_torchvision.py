"""Every classifier of torchvision by its own name, for images of any size that it can take.

Networks of this project's own (``fl_sim.models.zoo``) go before torchvision's of the same name;
``torchvision/vgg11`` is torchvision's whatever the project has.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelEntry, ModelSpec, Stem
from fl_sim.models.skeleton import weightless
from fl_sim.models.transposed_vit import TransposedVisionTransformer

PREFIX = "torchvision/"
_SIDES = (8, 12, 16, 24, 28, 32, 48, 64, 75, 96, 128, 160, 224)
# Arguments beside the number of classes; auxiliary heads answer in training only.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_REGISTERED = re.compile(r"^@register_model\(\)$.*?^def (\w+)", re.MULTILINE | re.DOTALL)
_SMALL = ("resnet", "resnext", "wide_resnet", "densenet")


@cache
def names() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers, read from its files without importing it."""
    spec = find_spec("torchvision")
    found: list[str] = []
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(root, "models").glob("*.py"):
            found += _REGISTERED.findall(file.read_text(encoding="utf-8"))
    return tuple(sorted(found))


def entry(name: str) -> ModelEntry | None:
    """Return how to build a classifier of torchvision's; ``None`` if it has none of that name.

    Args:
        name: for example ``"mobilenet_v3_small"`` or ``"torchvision/vgg11"``.
    """
    own = name.removeprefix(PREFIX)
    if own not in names():
        return None
    backwards = TransposedVisionTransformer if own.startswith("vit_") else None
    return ModelEntry(lambda spec: _build(own, spec), _Sides(own), transposed=backwards)


class _Sides(Mapping[Stem, int]):
    """The smallest image side by stem, found when it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stems: tuple[Stem, ...] = ("default",)
        if name.startswith(_SMALL):
            self._stems = ("default", "small")

    def __getitem__(self, stem: Stem) -> int:
        if stem not in self._stems:
            raise KeyError(stem)
        return _smallest(self._name, stem)

    def __iter__(self) -> Iterator[Stem]:
        return iter(self._stems)

    def __len__(self) -> int:
        return len(self._stems)


@cache
def _smallest(name: str, stem: Stem) -> int:
    """Return the smallest of some image sides that a network can take, tried without weights."""
    for side in _SIDES:
        spec = ModelSpec(name=name, channels=3, size=side, classes=2, stem=stem)
        try:
            network = weightless(lambda spec=spec: _build(name, spec))  # type: ignore[misc]
            network(torch.zeros(1, 3, side, side, device="meta"))
        except (FlSimError, RuntimeError, ValueError, AssertionError):
            continue
        return side
    return _SIDES[-1]


def _build(name: str, spec: ModelSpec) -> nn.Module:
    from torchvision.models import get_model

    arguments: dict[str, Any] = {"num_classes": spec.classes, **_ARGUMENTS.get(name, {})}
    if name.startswith("vit_"):
        arguments["image_size"] = spec.size
    if name.startswith("maxvit"):
        arguments["input_size"] = (spec.size, spec.size)
    try:
        network: nn.Module = get_model(name, weights=None, **arguments)
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise FlSimError(
            f"The model '{name}' cannot be built for images of {spec.size} pixels ({error}); "
            f"choose another dataset size, such as 224."
        ) from None
    if name.startswith("vit_"):  # starts at zero, which leaves a transposed pass without a signal
        nn.init.trunc_normal_(network.get_parameter("heads.head.weight"), std=0.02)
    take_plain_tensors(network)
    if spec.stem == "small":
        _shrink_stem(name, network)
    if spec.channels != 3:
        _take_channels(network, spec.channels)
    return network


def take_plain_tensors(network: nn.Module) -> None:
    """Let a network, if it is an MNASNet, load tensors by name as any other does.

    Its own method asks for a version, which only torch's pickled state dictionaries have.
    """
    if type(network).__name__ == "MNASNet":
        plain = MethodType(nn.Module._load_from_state_dict, network)
        network._load_from_state_dict = plain  # type: ignore[method-assign]


def _shrink_stem(name: str, network: Any) -> None:
    """Give a network a 3 x 3 first convolution of stride 1 and no first pooling."""
    holder, first, pool = network, "conv1", "maxpool"
    if name.startswith("densenet"):
        holder, first, pool = network.features, "conv0", "pool0"
    old = getattr(holder, first)
    setattr(holder, first, _initialised(nn.Conv2d(3, old.out_channels, 3, padding=1, bias=False)))
    setattr(holder, pool, nn.Identity())


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for images of so many channels."""
    name, old = next(
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    # What fits every argument of a convolution, read off the old one.
    same: dict[str, Any] = {
        key: getattr(old, key)
        for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **same)
    network.set_submodule(name, _initialised(new))


def _initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
