"""Affine restoration: each pixel's mean and deviation over the batch matched to public images."""

import torch

from fl_sim.restorations.base import RESTORATIONS, check_public, typical


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
    check_public(recovered, public)
    usable = typical(recovered)
    if not bool(usable.any()):
        return recovered.float()
    batch = recovered[usable]
    dims = (0,) if min(len(batch), len(public)) > 1 else (0, 2, 3)
    mean, deviation = _statistics(batch, dims)
    public_mean, public_deviation = _statistics(public, dims)
    # What remains of equal numbers after rounding to float32 must not be blown up to a picture.
    legible = deviation > 4 * torch.finfo(torch.float32).eps * mean.abs()
    gain = torch.where(legible, public_deviation / deviation, 0.0)
    restored = ((recovered.double() - mean) * gain + public_mean).clamp(0.0, 1.0).float()
    good = recovered.flatten(1).isfinite().all(dim=1)
    return torch.where(good[:, None, None, None], restored, recovered.float())


def _statistics(images: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    mean = images.mean(dim=dims, keepdim=True, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    # In parts, so that a large public set is never there a second time in float64.
    for part in images.split(64):
        squares += (part.double() - mean).square().sum(dim=dims, keepdim=True)
    values = images.numel() // mean.numel()
    return mean, (squares / values).sqrt()
