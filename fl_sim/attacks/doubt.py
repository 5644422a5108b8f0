"""What a receiver can tell of an extraction himself: whether pictures came out at all."""

import numpy as np
import torch

from fl_sim.attacks.base import Extraction
from fl_sim.payload.reading import Status

SMOOTH = 0.3
"""Correlation of neighbouring pixels below which an image is more noise than picture: medical
images at 28 pixels have 0.8 and more, what a wrong key reads 0.2 and less."""


def doubt(extraction: Extraction) -> str:
    """Say in one sentence why an extraction seems to have failed; nothing where it does not.

    Args:
        extraction: what came out.
    """
    reading = extraction.reading
    status = None if reading is None else reading.status
    if status is not None and len(status) and bool(np.all(status == Status.LOST)):
        return (
            f"None of the {len(status)} images' checksums is right: either the key does not "
            f"belong to this model, or the payload was destroyed on its way."
        )
    if status is None and len(extraction.images) and smoothness(extraction.images) < SMOOTH:
        return (
            f"What came out looks like noise (neighbouring pixels correlate by "
            f"{smoothness(extraction.images):.2f}, in pictures by 0.8 and more): either the key "
            f"does not belong to this model, or the images were destroyed on their way."
        )
    return ""


@torch.no_grad()
def smoothness(images: torch.Tensor) -> float:
    """Return the correlation of neighbouring pixels, across and down, of an image less its mean.

    Args:
        images: ``[n, channels, height, width]``, any values; images that are not finite are left
            out.

    Returns:
        The median over images, between -1 and 1; 0 where no image is finite.
    """
    usable = images[images.flatten(1).isfinite().all(dim=1)].double()
    if not len(usable):
        return 0.0
    centred = usable - usable.mean(dim=(2, 3), keepdim=True)
    energy = centred.square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    across = (centred[..., 1:] * centred[..., :-1]).mean(dim=(1, 2, 3))
    down = (centred[..., 1:, :] * centred[..., :-1, :]).mean(dim=(1, 2, 3))
    return float(((across + down) / 2 / energy).median())
