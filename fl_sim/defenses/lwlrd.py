"""LWLRD: fine-tuning with layer-wise learning-rate decay.

Thellier, Li, Ayache and Delingette, "Mitigating Data Exfiltration Attacks through Layer-Wise
Learning Rate Decay Fine-Tuning", arXiv 2509.00027. Early layers, where memorised images are said to
sit, are moved most; late ones, where the task is said to sit, least.
"""

from typing import Self

from pydantic import Field, model_validator

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import FineTuningSettings, LayerRate, fine_tune
from fl_sim.models.graph import Grouping, layers


class LwlrdSettings(FineTuningSettings):
    """Settings of LWLRD; the rates are the paper's.

    Args:
        high: learning rate of the first layer.
        low: learning rate of the last layer.
        layers: what counts as a layer: ``"tensor"``, ``"module"``, ``"block"`` or ``"depth"``; see
            :func:`fl_sim.models.graph.layers`. The paper does not say; the number of layers changes
            every rate but the first and last.
    """

    high: float = Field(1e-2, gt=0)
    low: float = Field(1e-4, gt=0)
    layers: Grouping = "block"

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        return self


def decayed_rates(high: float, low: float, count: int) -> list[float]:
    """Return ``high * (low / high) ** ((l - 1) / (L - 1))`` for ``l = 1 ... L``.

    Args:
        high: rate of the first layer.
        low: rate of the last layer.
        count: number of layers ``L``; a single layer gets ``high``.
    """
    return [high * (low / high) ** (l / max(1, count - 1)) for l in range(count)]  # noqa: E741


@DEFENSES.register(
    "lwlrd", "fine-tuning with layer-wise learning-rate decay (Thellier et al. 2025)"
)
class Lwlrd(Defense[LwlrdSettings]):
    """Fine-tune on the held-out set with a rate that decays geometrically over the layers."""

    Settings = LwlrdSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        ordered = layers(release.model, release.spec.input_shape, self.settings.layers)
        # Layers that the task does not use come last, get no gradient and no part of the decay.
        used = sum(layer.used for layer in ordered)
        rates = self.rates(used) + [self.settings.low] * (len(ordered) - used)
        return fine_tune(
            release,
            [LayerRate(layer, rate) for layer, rate in zip(ordered, rates, strict=True)],
            self.settings,
        )

    def rates(self, count: int) -> list[float]:
        """Return the learning rates of ``count`` layers, the first one's first."""
        return decayed_rates(self.settings.high, self.settings.low, count)
