"""Super-Fine-Tuning: a learning rate that swings up and down at every iteration, in two phases.

Sha, He, Berrang, Humbert and Zhang, "Fine-Tuning Is All You Need to Mitigate Backdoor Attacks",
arXiv 2212.09067. High peaks make the network forget what it should not know, low ones afterwards
win its task back. Their schedule is a triangular one (Smith, "Cyclical Learning Rates for Training
Neural Networks", WACV 2017).
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import (
    FineTuningHooks,
    FineTuningSettings,
    fine_tune,
    uniform_rates,
)
from fl_sim.settings import MOST_EPOCHS
from fl_sim.training import StepSettings

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "base": 3e-4,
        "max1": 0.1,
        "max2": 1e-3,
        "epochs1": 3,
        "epochs2": 3,
        "half_cycle": None,
        "momentum": 0.9,
        "weight_decay": 5e-4,
    },
    "toolbox": {
        "base": 3e-2,
        "max1": 5.0,
        "max2": 0.1,
        "epochs1": 40,
        "epochs2": 60,
        "half_cycle": 10,
        "momentum": 0.0,
        "weight_decay": 0.0,
    },
}


class SuperFineTuningSettings(StepSettings):
    """Settings of Super-Fine-Tuning; rates, epochs and the optimizer's keys come from the preset.

    Args:
        preset: ``"paper"`` as a public guide to the method gives it for CIFAR-10 and ResNet20, or
            ``"toolbox"`` as the code in ``vtu81/backdoor-toolbox`` has it. The two are far apart.
            Any other key that is given replaces the preset's.
        base: learning rate at the bottom of a swing.
        max1: learning rate at the top, in the first phase.
        max2: learning rate at the top, in the second phase.
        epochs1: passes over the held-out set in the first phase.
        epochs2: passes over the held-out set in the second phase.
        half_cycle: iterations from the bottom to the top; where not given, those of one pass (the
            guide's text and code disagree on the unit).
        batch_size: images a step, as published.
        batch_norm: see :class:`fl_sim.defenses.loops.fine_tune.FineTuningSettings`.
    """

    preset: Literal["paper", "toolbox"] = "paper"
    base: float = Field(3e-4, gt=0)
    max1: float = Field(0.1, gt=0)
    max2: float = Field(1e-3, gt=0)
    epochs1: int = Field(3, ge=0, le=MOST_EPOCHS)
    epochs2: int = Field(3, ge=0, le=MOST_EPOCHS)
    half_cycle: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=2)
    optimizer: Literal["adam", "sgd"] = "sgd"
    batch_norm: Literal["batch", "running"] = "batch"

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "paper")
        known = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {**known, **values}

    @model_validator(mode="after")
    def _swings(self) -> Self:
        if self.base > min(self.max1, self.max2):
            raise ValueError(
                f"base ({self.base:g}) must not exceed max1 ({self.max1:g}) or max2 ({self.max2:g})"
            )
        if self.epochs1 + self.epochs2 == 0:
            raise ValueError("epochs1 and epochs2 are both 0; give one of them at least 1")
        return self


def triangular_rate(base: float, top: float, step: int, half_cycle: int) -> float:
    """Return the rate at a step, from 0: ``base``, up to ``top``, and down to ``base`` again."""
    position = step % (2 * half_cycle)
    height = 1 - abs(position / half_cycle - 1)
    return base + (top - base) * height


@DEFENSES.register(
    "super_fine_tuning", "fine-tuning with a triangular learning rate (Sha et al. 2022)"
)
class SuperFineTuning(Defense[SuperFineTuningSettings]):
    """Fine-tune the whole network with swinging rates: high peaks first, then low ones."""

    Settings = SuperFineTuningSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        settings = self.settings
        shared = settings.model_dump(include=set(FineTuningSettings.model_fields))
        plain = FineTuningSettings(epochs=settings.epochs1 + settings.epochs2, **shared)
        rates = uniform_rates(release, settings.base)
        return fine_tune(release, rates, plain, _Swings(settings))


class _Swings(FineTuningHooks):
    def __init__(self, settings: SuperFineTuningSettings) -> None:
        self.settings = settings

    def rate_factor(self, step: int, steps_an_epoch: int) -> float:
        """Return the swinging rate in units of the base rate."""
        settings = self.settings
        first = settings.epochs1 * steps_an_epoch
        top, begun = (settings.max1, 0) if step < first else (settings.max2, first)
        half_cycle = settings.half_cycle or steps_an_epoch
        return triangular_rate(settings.base, top, step - begun, half_cycle) / settings.base
