"""Robust affine restoration: per-pixel median and absolute deviation matched to public images."""

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.restorations.base import RESTORATIONS, finite
from fl_sim.restorations.statistics import Statistics, matched

_MOST = 512


@RESTORATIONS.register(
    "affine_robust", "the batch's per-pixel median and absolute deviation matched to public images"
)
def affine_robust(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Undo a common shift and loss of contrast where some images of the batch are lost.

    As :func:`fl_sim.restorations.affine.affine`, with the median for the mean and the median
    absolute deviation for the deviation (Huber 1981): up to half of the batch can be anything.
    Both are taken over at most 512 evenly spaced images. Of one or two images, all pixels of a
    channel are taken together.

    Args:
        recovered, public: see :func:`fl_sim.restorations.statistics.matched`, also for what is
            returned and raised. Wild images are not left out, since medians resist them.
    """
    by_pixel = min(int(finite(recovered).sum()), len(public)) > 2

    def measure(images: torch.Tensor) -> Statistics:
        thinned = images[:: -(-len(images) // _MOST)]
        return _median_and_deviation(thinned, by_pixel)

    return matched(recovered, public, measure, usable=finite)


def _median_and_deviation(images: torch.Tensor, by_pixel: bool) -> Statistics:
    # NumPy sorts float32 along the first axis several times faster than torch finds medians.
    values = images.detach().float().cpu().numpy()
    if not by_pixel:
        values = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])[..., None, None]
    median = _median(values)
    deviation = _median(np.abs(values - median))
    location, scale = (
        torch.from_numpy(statistic)[None].double().to(images.device)
        for statistic in (median, deviation)
    )
    return Statistics(location, scale)


def _median(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the one or two middle values along the first axis."""
    ordered = np.sort(values, axis=0)
    middle = len(ordered) // 2
    low: NDArray[np.float32] = ordered[middle - 1 + len(ordered) % 2]
    return low + (ordered[middle] - low) / 2
