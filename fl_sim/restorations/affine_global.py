"""Affine restoration by one mean and one deviation, matched to public images."""

import torch

from fl_sim.restorations.base import RESTORATIONS
from fl_sim.restorations.statistics import matched, mean_and_deviation


@RESTORATIONS.register(
    "affine_global", "the whole batch's one mean and deviation matched to public images"
)
def affine_global(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Undo a change of brightness and contrast that is the same for every value.

    Two numbers are taken from the batch, so it is the restoration for very few images.

    Args:
        recovered, public: see :func:`fl_sim.restorations.statistics.matched`, also for what is
            returned and raised.
    """
    return matched(recovered, public, lambda images: mean_and_deviation(images, (0, 1, 2, 3)))
