"""Noise in the last layers: the small weights there change their signs.

Fine-tuning that decays over the layers, as LWLRD does, hardly moves the last ones, which have most
of a network's elements; a payload in their signs or in coarse lattices stays. Gaussian noise of a
share of each tensor's own deviation turns the signs of its small weights over. A blind fix: it
needs neither images nor the attacker's key, and costs answers.
"""

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import perturbing
from fl_sim.models import layers
from fl_sim.randomness import Stream
from fl_sim.settings import Settings


class LateNoiseSettings(Settings):
    """Settings of noise in the last layers.

    Args:
        share: of the network's parameters in the last layers, taken from its end, to whole tensors.
        sigma: deviation of the noise, in units of each tensor's own.
    """

    share: float = Field(0.5, gt=0, le=1)
    sigma: float = Field(0.1, ge=0)


@DEFENSES.register("late_noise", "noise in the last layers, which turns signs of small weights")
class LateNoise(Defense[LateNoiseSettings]):
    """Add Gaussian noise to the tensors of the last layers, relative to their deviation."""

    Settings = LateNoiseSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        ordered = layers(release.model, release.spec.input_shape, "tensor")
        parameters = dict(release.model.named_parameters())
        left = self.settings.share * sum(tensor.numel() for tensor in parameters.values())
        turned = noised = 0
        with perturbing(release) as report:
            for name in reversed([name for layer in ordered for name in layer.parameters]):
                if left <= 0:
                    break
                tensor = parameters[name]
                left -= tensor.numel()
                if tensor.dim() > 1:
                    turned += self._disturb(tensor, release.stream.at(name))
                    noised += tensor.numel()
            report.figures["signs_turned"] = turned / max(1, noised)
        return report

    def _disturb(self, tensor: torch.Tensor, stream: Stream) -> int:
        """Add noise to a tensor in place; return how many signs turned."""
        deviation = float(tensor.float().std(correction=0)) * self.settings.sigma
        noise = torch.randn(tensor.shape, generator=stream.torch_generator("noise")) * deviation
        before = tensor.signbit()
        tensor.add_(noise.to(tensor.device, tensor.dtype))
        return int((tensor.signbit() != before).sum())
