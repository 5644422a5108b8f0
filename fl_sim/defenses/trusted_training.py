"""Trusted training: the control that a defence has to beat to be worth its risk.

The owner throws the model away and trains the same architecture anew by his own code, on all
images that he has: those that the stranger's code was given, and the held-out ones. Nothing of the
attacked model leaves. In a federation no one has all images; the control there is the federation
without the malicious hospital (``[federation] absent``).
"""

from pydantic import Field

from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.loops.fine_tune import OwnersImages
from fl_sim.defenses.scratch import RetrainingSettings, Scratch
from fl_sim.training import Schedule
from fl_sim.views import Orientations


class TrustedTrainingSettings(RetrainingSettings):
    """Settings of trusted training: views and budget are those of consistent distillation.

    Args:
        images: ``"all"`` that the owner has, the ``"training"`` images alone, or the ``"held_out"``
            ones alone.
        max_steps: optimizer steps.
        learning_rate: at its highest.
        schedule: see :class:`fl_sim.training.RecipeSettings`.
        views: see :class:`fl_sim.training.ViewSettings`.
        mixup: see :class:`fl_sim.training.ViewSettings`.
    """

    images: OwnersImages = "all"
    max_steps: int | None = Field(600, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Schedule = "cosine"
    views: Orientations = "square"
    mixup: float = Field(1.0, ge=0, le=1)


@DEFENSES.register(
    "trusted_training", "a fresh network trained by the owner on all his images (control)"
)
class TrustedTraining(Scratch):
    """Throw the model away, and train a fresh one on all images that the owner has."""

    Settings = TrustedTrainingSettings
