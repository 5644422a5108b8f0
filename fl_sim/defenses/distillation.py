"""Distillation into a fresh network: its weights are new, its knowledge the old one's answers.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. The soft
labels that the suspect model gives held-out images are all that it passes on.
"""

import copy

import torch
from pydantic import Field
from torch import nn

from fl_sim.data.base import Task
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.distil import divergence
from fl_sim.defenses.loops.fine_tune import FineTuningHooks
from fl_sim.defenses.loops.retrain import retrain
from fl_sim.defenses.scratch import RetrainingSettings
from fl_sim.training import labelled_loss


class DistillationSettings(RetrainingSettings):
    """Settings of distillation.

    Args:
        temperature: that both networks' logits are divided by in the soft part of the loss.
        soft: weight of the soft part, from 0 (labels only) to 1 (the old network's answers only).
        flip: whether images are flipped left to right at random, in both networks alike.
    """

    temperature: float = Field(4.0, gt=0)
    soft: float = Field(0.9, ge=0, le=1)
    flip: bool = True


@DEFENSES.register("distillation", "a fresh network taught by the old one (Hinton et al. 2015)")
class Distillation(Defense[DistillationSettings]):
    """Train a fresh network on the old one's answers to held-out images, and on their labels."""

    Settings = DistillationSettings

    @property
    def uses_labels(self) -> bool:
        """Whether the labels have any weight."""
        return self.settings.soft < 1

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        if self.settings.soft == 0:
            return retrain(release, self.settings.learning_rate, self.settings)
        teacher = copy.deepcopy(release.model).eval()
        hooks = _Teaching(teacher, release.task, self.settings)
        return retrain(release, self.settings.learning_rate, self.settings, hooks)


class _Teaching(FineTuningHooks):
    def __init__(self, teacher: nn.Module, task: Task, settings: DistillationSettings) -> None:
        self._teacher, self._task, self._settings = teacher, task, settings
        self.loss = self._loss

    def _loss(
        self, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        share = self._settings.soft
        with torch.no_grad():
            answers = self._teacher(images)
        soft = divergence(logits, answers, self._task, self._settings.temperature)
        return share * soft + (1 - share) * labelled_loss(self._task, logits, labels)
