"""Gaussian noise on the exported model, the mitigation that the DEC paper studies.

Li, Ayache and Delingette, "Data Exfiltration by Compression Attack: Definition and Evaluation on
Medical Image Data", MELBA 2025:032, section 4.4. They call it basic differential privacy; without
bounded sensitivity it gives no formal guarantee.
"""

from typing import Literal

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import float_entries, perturbing
from fl_sim.settings import Settings


class GaussianNoiseSettings(Settings):
    """Settings of Gaussian noise.

    Args:
        sigma: standard deviation of the noise.
        scale: ``"absolute"``, as in the paper, or ``"relative"``: ``sigma`` times each tensor's
            own standard deviation.
    """

    sigma: float = Field(1e-3, ge=0)
    scale: Literal["absolute", "relative"] = "absolute"


@DEFENSES.register("gaussian_noise", "Gaussian noise on every parameter (DEC paper, section 4.4)")
class GaussianNoise(Defense[GaussianNoiseSettings]):
    """Add independent Gaussian noise to every parameter and every further float entry.

    Buffers (running statistics) are left as they are: noise would make variances negative.
    """

    Settings = GaussianNoiseSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        with perturbing(release) as report:
            for name, tensor in (
                *release.model.named_parameters(),
                *float_entries(release).items(),
            ):
                tensor.add_(self._noise(tensor, release, name))
        return report

    def _noise(self, tensor: torch.Tensor, release: Release, name: str) -> torch.Tensor:
        sigma = self.settings.sigma
        if self.settings.scale == "relative":
            deviation = float(tensor.float().std(correction=0))
            sigma *= deviation
        generator = release.stream.at(name).torch_generator("noise")
        noise = torch.randn(tensor.shape, generator=generator) * sigma
        return noise.to(tensor.device, tensor.dtype)
