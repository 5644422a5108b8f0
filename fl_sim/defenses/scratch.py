"""Training from scratch on the held-out set: the control that every defence has to beat.

What leaves then has nothing of the suspect weights. A defence whose model is worth no more than
this one has protected nothing worth having. (A stronger control is trusted training, by the
owner's own code on all images that he has.)
"""

from typing import Literal

from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import FineTuningSettings
from fl_sim.defenses.loops.retrain import retrain
from fl_sim.settings import MOST_EPOCHS


class RetrainingSettings(FineTuningSettings):
    """Settings of training a fresh network on the held-out set.

    Args:
        epochs: passes over the held-out set; as many as for the utility floor by default.
        batch_size: images a step, as in training.
        optimizer: as in training.
        learning_rate: as in training.
    """

    epochs: int = Field(20, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(3e-4, gt=0)


@DEFENSES.register("scratch", "a fresh network trained on the held-out set alone (control)")
class Scratch(Defense[RetrainingSettings]):
    """Throw the weights away, and train fresh ones on the held-out images and their labels."""

    Settings = RetrainingSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        return retrain(release, self.settings.learning_rate, self.settings)
