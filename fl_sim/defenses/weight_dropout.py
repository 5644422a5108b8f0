"""Random weights set to zero.

Thellier et al., arXiv 2509.00027, name it as what might hurt learned steganography, whose payload
lies in frozen weights.
"""

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import float_entries, perturbing, weights
from fl_sim.settings import Settings


class WeightDropoutSettings(Settings):
    """Settings of weight dropout.

    Args:
        share: of the weights that are set to zero, each one independently of the others.
    """

    share: float = Field(0.05, ge=0, le=1)


@DEFENSES.register("weight_dropout", "a random share of the weights set to zero")
class WeightDropout(Defense[WeightDropoutSettings]):
    """Set random weights, and random elements of further float entries, to zero.

    Biases and the parameters of normalisation, which are few, are left as they are.
    """

    Settings = WeightDropoutSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        with perturbing(release) as report:
            for name, tensor in (weights(release) | float_entries(release)).items():
                generator = release.stream.at(name).torch_generator("weight dropout")
                dropped = torch.rand(tensor.shape, generator=generator) < self.settings.share
                tensor.masked_fill_(dropped.to(tensor.device), 0)
        return report
