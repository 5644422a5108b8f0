"""Random permutation of hidden channels: another file, the same network.

A payload whose places follow from the weights' positions is scrambled, at no cost to the task. The
symmetry is that of Hecht-Nielsen (1990); as a defence see arXiv 2509.20399. An attacker who sorts
the channels before he writes and before he reads undoes it, unless something else moves the weights
too.
"""

import math

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import perturbing
from fl_sim.models.channels import channel_groups, permutable_share, permute
from fl_sim.models.rescaling import rescale, rescalings
from fl_sim.settings import Settings


class ChannelPermutationSettings(Settings):
    """Settings of channel permutation.

    Args:
        rescale: largest factor by which channels are multiplied or divided as well, each by one of
            its own (log-uniform), where what follows can take it back exactly; 1 for none. It
            changes every bit of the mantissas, which permutation alone does not.
    """

    rescale: float = Field(1.0, ge=1, le=16)


@DEFENSES.register("channel_permutation", "hidden channels permuted (and rescaled) at random")
class ChannelPermutation(Defense[ChannelPermutationSettings]):
    """Permute the network's hidden channels, consistently; its answers stay the same.

    The report's ``permuted_share`` is the share of parameters that the permutations can move.
    """

    Settings = ChannelPermutationSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        model, shape = release.model, release.spec.input_shape
        state = model.state_dict()
        with perturbing(release) as report:
            groups = channel_groups(model, shape)
            generator = release.stream.torch_generator("channel permutation")
            orders = [torch.randperm(g.channels, generator=generator).numpy() for g in groups]
            permute(state, groups, orders)
            if self.settings.rescale > 1:
                self._rescale(release, state)
        report.figures["permuted_share"] = permutable_share(model, groups)
        return report

    def _rescale(self, release: Release, state: dict[str, torch.Tensor]) -> None:
        generator = release.stream.torch_generator("channel rescaling")
        reach = math.log(self.settings.rescale)
        for where in rescalings(release.model, release.spec.input_shape):
            drawn = torch.rand(where.channels, generator=generator, dtype=torch.float64)
            rescale(state, where, torch.exp((2 * drawn - 1) * reach))
