"""A network whose last layer is two with a square between: a head that CKKS can compute sealed.

Allison, Maciazek and Bourne 2025, arXiv 2505.14323: homomorphic encryption multiplies and adds, so
the activation of a head of more than one layer is ``x^2``.
"""

import torch
from pydantic import Field, field_validator
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.settings import Settings, parse


class SquareHeadSettings(Settings):
    """Keys of the network with a square head.

    Args:
        base: a network that ends with one linear layer, by its name.
        hidden: units between the two; one less than a power of two is packed best.
    """

    base: str = "cnn"
    hidden: int = Field(15, ge=1, le=1023)

    @field_validator("base")
    @classmethod
    def _not_itself(cls, base: str) -> str:
        if base == "square_head":
            raise ValueError("base is square_head itself; name the network that it is put on")
        return base


class Square(nn.Module):
    """``x^2``, element by element."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the squares."""
        return inputs * inputs


def _build(spec: ModelSpec) -> nn.Module:
    settings = parse(SquareHeadSettings, spec.settings, "[model]")
    inner = ModelSpec(**{**spec.model_dump(), "name": settings.base, "settings": {}})
    network = MODELS.get(settings.base).build(inner)
    name, last = list(network.named_modules())[-1]
    if not isinstance(last, nn.Linear):
        raise FlSimError(
            f"The network '{settings.base}' does not end with a linear layer, so there is no place "
            f'for a square head; set base = "cnn" or "resnet18".'
        )
    parent, _, own = name.rpartition(".")
    head = nn.Sequential(
        nn.Linear(last.in_features, settings.hidden),
        Square(),
        nn.Linear(settings.hidden, last.out_features),
    )
    setattr(network.get_submodule(parent), own, head)
    return network


MODELS.register("square_head", "a network that ends with two layers and a square between (RHE)")(
    ModelEntry(_build, {"default": 8, "small": 8}, settings=SquareHeadSettings)
)
