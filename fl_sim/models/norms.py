"""Which normalisation a network has: over the batch, or within each image."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from fl_sim.models.base import ModelSpec
from fl_sim.settings import Settings, parse


class NormSettings(Settings):
    """Settings of networks whose normalisation can be chosen.

    Args:
        norm: ``"batch"`` normalisation, or ``"group"`` normalisation, which does not mix images and
            so goes with differentially private training.
    """

    norm: Literal["batch", "group"] = "batch"


def norm_layer(spec: ModelSpec) -> Callable[[int], nn.Module]:
    """Return what makes the normalisation of a number of channels."""
    settings = parse(NormSettings, spec.settings, f"The model '{spec.name}'")
    return nn.BatchNorm2d if settings.norm == "batch" else group_norm


def group_norm(channels: int) -> nn.Module:
    """Return group normalisation with 32 groups, or fewer of four channels each.

    Wu and He, "Group Normalization", ECCV 2018, have 32.
    """
    return nn.GroupNorm(min(32, channels // 4), channels)
