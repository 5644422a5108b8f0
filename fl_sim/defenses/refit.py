"""REFIT: fine-tuning with a high, decaying learning rate and elastic weight consolidation.

Chen, Wang, Bender, Ding, Jia, Li and Song, "REFIT: A Unified Watermark Removal Framework for Deep
Learning Systems with Limited Data", AsiaCCS 2021, arXiv 1911.07205. A high rate makes the network
forget; where images are few, the penalty of Kirkpatrick et al. (PNAS 2017) keeps the weights that
the task needs: ``lambda / 2 * sum F_i (w_i - w0_i)^2``.
"""

import time

import torch
from pydantic import Field
from torch import nn

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import (
    FineTuningHooks,
    FineTuningSettings,
    fine_tune,
    uniform_rates,
)
from fl_sim.defenses.loops.fisher import FisherGradients, FisherLabels, diagonal_fisher


class RefitSettings(FineTuningSettings):
    """Settings of REFIT. The defaults are this project's, as the paper's are tuned case by case.

    Args:
        learning_rate: of every layer, in the first epoch.
        decay: what the rate is multiplied by after each epoch.
        consolidation: ``lambda``, the penalty's weight. The Fisher information is divided by its
            largest value first, so that one value serves networks of any size.
        labels: of the Fisher information; see :func:`fl_sim.defenses.loops.fisher.diagonal_fisher`.
        per: whose gradients it squares; see there.
    """

    learning_rate: float = Field(2e-2, gt=0)
    decay: float = Field(0.5, gt=0, le=1)
    consolidation: float = Field(100.0, ge=0)
    labels: FisherLabels = "true"
    per: FisherGradients = "image"


@DEFENSES.register(
    "refit", "high-rate fine-tuning with elastic weight consolidation (Chen et al. 2021)"
)
class Refit(Defense[RefitSettings]):
    """Fine-tune with a high, decaying rate, held back where the task needs the weights."""

    Settings = RefitSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        settings = self.settings
        began = time.perf_counter()
        hooks = _Consolidation(release.model, settings, self._importance(release))
        spent = time.perf_counter() - began
        rates = uniform_rates(release, settings.learning_rate)
        report = fine_tune(release, rates, settings, hooks)
        report.seconds += spent
        return report

    def _importance(self, release: Release) -> dict[str, torch.Tensor]:
        if self.settings.consolidation == 0:
            return {}
        fisher = diagonal_fisher(
            release.model,
            release.held_out,
            release.task,
            release.stream,
            labels=self.settings.labels,
            per=self.settings.per,
            progress=release.progress,
        )
        largest = max(float(values.max()) for values in fisher.values())
        return {name: values / (largest or 1.0) for name, values in fisher.items()}


class _Consolidation(FineTuningHooks):
    def __init__(
        self, model: nn.Module, settings: RefitSettings, importance: dict[str, torch.Tensor]
    ) -> None:
        self.settings = settings
        # A pull above 1 / rate would overshoot where it should hold back.
        most = 1 / settings.learning_rate
        self._pulls = [
            (p, p.detach().clone(), (importance[name] * settings.consolidation).clamp(max=most))
            for name, p in model.named_parameters()
            if name in importance
        ]

    def rate_factor(self, step: int, steps_an_epoch: int) -> float:
        """Return the decay of the epoch."""
        return float(self.settings.decay ** (step // steps_an_epoch))

    def add_gradient(self) -> None:
        """Add the penalty's gradient, ``lambda * F * (w - w0)``."""
        with torch.no_grad():
            for parameter, anchor, pull in self._pulls:
                if parameter.grad is not None:
                    parameter.grad.addcmul_(pull, parameter - anchor)
