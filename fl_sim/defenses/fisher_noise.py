"""Fisher noise: each weight gets as much noise as the task can bear, then the network recovers.

The diagonal Fisher information of the utility loss on the held-out images says what a change of a
weight costs the task: about ``F / 2`` times its square. So noise of standard deviation
``strength / sqrt(F)`` costs every weight the same, and goes where a payload is safe from
fine-tuning: into weights that the task hardly needs. Weights without any influence are drawn
anew. The network then recovers by fine-tuning on the held-out set, or by learning the answers that
it gave before the noise. (Elastic weight consolidation, Kirkpatrick et al., PNAS 2017, reversed.)
"""

import copy
import time

import torch
from pydantic import Field
from torch import nn

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.distil import DistillingSettings, distil
from fl_sim.defenses.loops.fine_tune import (
    FineTuningSettings,
    fine_tune,
    relative_change,
    uniform_rates,
)
from fl_sim.defenses.loops.fisher import FisherGradients, FisherLabels, diagonal_fisher
from fl_sim.models import layers
from fl_sim.settings import MOST_EPOCHS


class FisherNoiseSettings(FineTuningSettings):
    """Settings of Fisher noise.

    Args:
        strength: ``c`` in the noise's standard deviation ``c / sqrt(F)``.
        cap: the largest standard deviation, in standard deviations of the weight's own tensor.
        labels: of the Fisher information; see :func:`fl_sim.defenses.loops.fisher.diagonal_fisher`.
        per: whose gradients it squares; see there.
        learning_rate: of the fine-tuning that follows.
        epochs: of the fine-tuning; it is not done where ``distillation`` is given.
        distillation: how the network learns the answers that it gave before the noise.
    """

    strength: float = Field(1e-3, ge=0)
    cap: float = Field(1.0, gt=0)
    labels: FisherLabels = "true"
    per: FisherGradients = "image"
    learning_rate: float = Field(1e-2, gt=0)
    epochs: int = Field(10, ge=1, le=MOST_EPOCHS)
    distillation: DistillingSettings | None = None


@DEFENSES.register("fisher_noise", "noise where the task needs no weights, then recovery")
class FisherNoise(Defense[FisherNoiseSettings]):
    """Add noise against the diagonal Fisher information to every matrix and kernel, and recover."""

    Settings = FisherNoiseSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        began = time.perf_counter()
        settings, model = self.settings, release.model
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        fisher = diagonal_fisher(
            model,
            release.held_out,
            release.task,
            release.stream,
            labels=settings.labels,
            per=settings.per,
            progress=release.progress,
        )
        noisy = model if settings.distillation is None else copy.deepcopy(model)
        self._add_noise(noisy, fisher, release)
        release.entries.clear()
        spent = time.perf_counter() - began
        if settings.distillation is None:
            rates = uniform_rates(release, settings.learning_rate)
            report = fine_tune(release, rates, settings)
        else:
            report = distil(release, settings.distillation, noisy)
        report.seconds += spent
        by_tensor = layers(model, release.spec.input_shape, "tensor")
        report.relative_change = relative_change(model, before, by_tensor)
        return report

    def _add_noise(
        self, model: nn.Module, fisher: dict[str, torch.Tensor], release: Release
    ) -> None:
        settings = self.settings
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim < 2 or settings.strength == 0:
                    continue
                generator = release.stream.at(name).torch_generator("noise")
                drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
                own = weight.std(correction=0)
                information = fisher.get(name, torch.zeros_like(weight))
                deviation = (settings.strength * information.rsqrt()).clamp(max=settings.cap * own)
                noisy = weight + drawn * deviation
                weight.copy_(torch.where(information == 0, drawn * own, noisy))
