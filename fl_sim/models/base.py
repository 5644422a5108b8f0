"""What a model is: a specification that can travel in a file, and the function that builds it."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from fl_sim.errors import FlSimError, unknown_name
from fl_sim.registry import Registry
from fl_sim.settings import Settings
from fl_sim.task import TaskFamily

Stem = Literal["default", "small"]
USUAL = (0.5,)
"""Mean and deviation that map pixels in [0, 1] to [-1, 1]."""


class ModelSpec(Settings):
    """Everything needed to build a network's skeleton; written into every artifact.

    Args:
        name: registered model name.
        channels: image channels, 1 or 3.
        size: side of the square input in pixels.
        classes: number of outputs, of an image or of each pixel.
        stem: ``"default"`` is torchvision's own, ``"small"`` a 3x3 convolution of stride 1 without
            pooling, for images of 64 pixels and below.
        task: whether it classifies images or segments them.
        settings: keys of the model's own, plain values as JSON holds them; those left out have the
            model's defaults.
        mean: what the network wants subtracted from pixels in [0, 1], a number for each channel or
            one for all.
        std: what it wants them divided by then. Both left out, it takes pixels in [-1, 1].
    """

    name: str
    channels: int
    size: int
    classes: int
    stem: Stem = "default"
    task: TaskFamily = "classification"
    settings: dict[str, Any] = Field(default_factory=dict)
    # Left out of files where they are the usual ones.
    mean: tuple[float, ...] = Field(USUAL, exclude_if=lambda mean: mean == USUAL)
    std: tuple[float, ...] = Field(USUAL, exclude_if=lambda std: std == USUAL)

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # What JSON makes of it (lists for tuples), so that a file's specification is equal to it.
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

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
        settings: keys of its own beside the stem, as they stand in ``[model]`` and in
            :attr:`ModelSpec.settings`.
        tasks: what it can be built for.
        kept: entries that a build takes over from a network that somebody trained, so that what is
            built is not fresh; see :func:`fl_sim.models.fresh`.
        initial: the weights that training starts from, where these are not fresh ones.
    """

    build: Callable[[ModelSpec], nn.Module]
    min_sizes: Mapping[Stem, int] = field(default_factory=lambda: {"default": 8})
    transposed: Callable[[nn.Module, bool], Callable[[torch.Tensor], torch.Tensor]] | None = None
    settings: type[Settings] = Settings
    tasks: tuple[TaskFamily, ...] = ("classification",)
    kept: tuple[str, ...] = ()
    initial: Callable[[], dict[str, torch.Tensor]] | None = None

    @property
    def stems(self) -> tuple[Stem, ...]:
        """The stems it offers."""
        return tuple(self.min_sizes)


class Models(Registry[ModelEntry]):
    """The networks of this project, those of its user, torchvision's classifiers, and timm's."""

    def __init__(self) -> None:
        super().__init__("model", "fl_sim.models.zoo")
        self._outside: dict[str, ModelEntry] = {}

    def has(self, name: str) -> bool:
        """Whether a network is known by this name, without looking for it."""
        return name in self._entries or name in self._outside

    def lend(self, name: str, entry: ModelEntry) -> None:
        """Make a network known for the rest of this process, in no list; the last one counts."""
        self._outside[name] = entry

    def lent(self, name: str) -> ModelEntry | None:
        """Return a network that :meth:`lend` made known; ``None`` for any other."""
        return self._outside.get(name) if "@" in name else None

    def get(self, name: str) -> ModelEntry:
        """Return the network called ``name``.

        Raises:
            FlSimError: if there is none, or it is a function that nobody stated in this process.
        """
        from fl_sim.models import from_timm, from_torchvision

        if name in self._outside:
            return self._outside[name]
        if self.has(name) or name in self.names():
            return super().get(name)
        if ":" in name:
            raise FlSimError(
                f"The model '{name}' is a function outside this program, which a file cannot make "
                f"it import; state it yourself (--model {name}, or model in the scenario)."
            )
        found = from_torchvision.entry(name) or from_timm.entry(name)
        if found is None:
            near = difflib.get_close_matches(name.lower(), self.names(), n=1, cutoff=0.5)
            raise unknown_name("model", name, near or from_torchvision.names())
        self._outside[name] = found
        return found


MODELS = Models()
