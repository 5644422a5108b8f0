"""Fine-tuning with one high learning rate; see :mod:`fl_sim.defenses.fine_tuning`."""

from pydantic import Field

from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.fine_tuning import FineTuning, UniformFineTuningSettings


class HighRateFineTuningSettings(UniformFineTuningSettings):
    """Settings of fine-tuning with one high learning rate.

    Args:
        learning_rate: of every layer; as high as LWLRD's in the first layer.
    """

    learning_rate: float = Field(1e-2, gt=0)


@DEFENSES.register("high_rate_fine_tuning", "fine-tuning with one high learning rate (baseline)")
class HighRateFineTuning(FineTuning):
    """Fine-tune on the held-out set, every layer with the same high learning rate."""

    Settings = HighRateFineTuningSettings
