"""Magnitude pruning: the smallest weights set to zero.

Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks",
NeurIPS 2015. Luzon et al. (NDSS 2026) measure weight-hiding attacks against it.
"""

from typing import Literal

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import perturbing, weights
from fl_sim.settings import Settings


class MagnitudePruningSettings(Settings):
    """Settings of magnitude pruning.

    Args:
        share: of the weights that are set to zero.
        scope: the smallest of all weights (``"global"``), or of each tensor's (``"layer"``).
    """

    share: float = Field(0.2, ge=0, le=1)
    scope: Literal["global", "layer"] = "global"


@DEFENSES.register("magnitude_pruning", "the smallest weights set to zero (Han et al. 2015)")
class MagnitudePruning(Defense[MagnitudePruningSettings]):
    """Set the weights of smallest magnitude to zero; biases and normalisation stay."""

    Settings = MagnitudePruningSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        with perturbing(release) as report:
            tensors = list(weights(release).values())
            groups = [tensors] if self.settings.scope == "global" else [[t] for t in tensors]
            for group in groups:
                prune_smallest(group, self.settings.share)
        return report


def prune_smallest(tensors: list[torch.Tensor], share: float) -> None:
    """Set a share of the elements of some tensors to zero, in place: the smallest of them all."""
    if not tensors:
        return
    sizes = [tensor.abs().reshape(-1) for tensor in tensors]
    together = torch.cat(sizes)
    pruned = torch.zeros_like(together, dtype=torch.bool)
    pruned[together.argsort(stable=True)[: round(share * len(together))]] = True
    masks = pruned.split([len(size) for size in sizes])
    for tensor, mask in zip(tensors, masks, strict=True):
        tensor.masked_fill_(mask.view(tensor.shape), 0)
