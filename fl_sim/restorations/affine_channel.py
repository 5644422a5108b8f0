"""Affine restoration by channel: one mean and deviation a colour, matched to public images."""

import torch

from fl_sim.restorations.base import RESTORATIONS
from fl_sim.restorations.statistics import matched, mean_and_deviation


@RESTORATIONS.register(
    "affine_channel", "the batch's mean and deviation of each channel matched to public images"
)
def affine_channel(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Undo a tint and a loss of contrast; the statistics are over images and pixels together.

    Where a defence added one constant picture, :func:`fl_sim.restorations.affine.affine` is
    stronger; where there are few images, this one draws less noise into the result.

    Args:
        recovered, public: see :func:`fl_sim.restorations.statistics.matched`, also for what is
            returned and raised.
    """
    return matched(recovered, public, lambda images: mean_and_deviation(images, (0, 2, 3)))
