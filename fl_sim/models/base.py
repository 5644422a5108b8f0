"""What a model is: a specification that can travel in a file, and the function that builds it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from fl_sim.registry import Registry
from fl_sim.settings import Settings

Stem = Literal["default", "small"]


class ModelSpec(Settings):
    """Everything needed to build a network's skeleton; written into every artifact.

    Args:
        name: registered model name.
        channels: image channels, 1 or 3.
        size: side of the square input in pixels.
        classes: number of outputs.
        stem: ``"default"`` is torchvision's own, ``"small"`` a 3x3 convolution of stride 1 without
            pooling, for images of 64 pixels and below.
    """

    name: str
    channels: int
    size: int
    classes: int
    stem: Stem = "default"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        return (self.channels, self.size, self.size)


@dataclass(frozen=True)
class ModelEntry:
    """What a model's file registers: how to build it and which images it can take.

    Args:
        build: makes the network from a specification.
        min_sizes: smallest image side for each stem that it offers.
        transposed: ``transposed(network, as_released)`` gives the network's transposed pass; only
            for networks whose traced graph does not tell it.
    """

    build: Callable[[ModelSpec], nn.Module]
    min_sizes: Mapping[Stem, int] = field(default_factory=lambda: {"default": 8})
    transposed: Callable[[nn.Module, bool], Callable[[torch.Tensor], torch.Tensor]] | None = None

    @property
    def stems(self) -> tuple[Stem, ...]:
        """The stems it offers."""
        return tuple(self.min_sizes)


MODELS: Registry[ModelEntry] = Registry("model", "fl_sim.models.zoo")
