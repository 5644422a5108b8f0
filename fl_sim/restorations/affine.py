"""Affine restoration: each pixel's mean and deviation over the batch matched to public images."""

import torch

from fl_sim.restorations.base import RESTORATIONS, typical
from fl_sim.restorations.statistics import matched, mean_and_deviation


@RESTORATIONS.register(
    "affine", "the batch's per-pixel mean and deviation matched to public images"
)
def affine(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Undo what fine-tuning adds to all recovered images alike: a shift and a loss of contrast.

    ``out = (x - mean_batch) / deviation_batch * deviation_public + mean_public``, for each pixel
    of each channel, clamped to [0, 1]. One image alone has no deviation at a pixel; it is matched
    a channel at a time, over all pixels, and so are the images where there is one public image.
    A pixel that is the same in the whole batch tells nothing and becomes the public mean.
    It is the feature statistics matching of AdaIN (Huang and Belongie 2017, equation 8), in pixels.

    Args:
        recovered: ``[n, channels, height, width]``, any values. Images that are not finite, or
            wild (see :func:`fl_sim.restorations.base.typical`), are left out of the statistics.
        public: ``[m, channels, height, width]`` in [0, 1].

    Returns:
        float32 ``[n, channels, height, width]``; images with a value that is not finite are
        returned as they are.

    Raises:
        FlSimError: if there is no public image, or its shape is another one.
    """
    several = min(int(typical(recovered).sum()), len(public)) > 1
    dims = (0,) if several else (0, 2, 3)
    return matched(recovered, public, lambda images: mean_and_deviation(images, dims))
