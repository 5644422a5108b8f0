"""Fine-tuning with one learning rate for the whole network.

The two plain baselines of Thellier et al., "Mitigating Data Exfiltration Attacks through Layer-Wise
Learning Rate Decay Fine-Tuning", arXiv 2509.00027. Their rates are not published; the defaults here
are the ends of that paper's decay.
"""

from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import FineTuningSettings, fine_tune, uniform_rates


class UniformFineTuningSettings(FineTuningSettings):
    """Settings of fine-tuning with one learning rate.

    Args:
        learning_rate: of every layer; small, as when a trained network is adapted.
    """

    learning_rate: float = Field(1e-4, gt=0)


@DEFENSES.register("fine_tuning", "fine-tuning with one small learning rate (vanilla baseline)")
class FineTuning(Defense[UniformFineTuningSettings]):
    """Fine-tune on the held-out set, every layer with the same learning rate."""

    Settings = UniformFineTuningSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        rates = uniform_rates(release, self.settings.learning_rate)
        return fine_tune(release, rates, self.settings)
