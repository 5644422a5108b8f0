"""What affine restorations share: a batch's location and scale, matched to public images'."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from fl_sim.restorations.base import check_public, finite, typical

PART = 64
"""Images turned into float64 at once, so that a large batch is never there a second time."""


class Statistics(NamedTuple):
    """Where values lie and how far they spread, of a shape that broadcasts to images."""

    location: torch.Tensor
    scale: torch.Tensor


Measure = Callable[[torch.Tensor], Statistics]


def mean_and_deviation(images: torch.Tensor, dims: tuple[int, ...]) -> Statistics:
    """Return mean and standard deviation (population) over some dimensions, float64.

    Args:
        images: ``[n, channels, height, width]``, finite.
        dims: dimensions averaged over; the first is always one of them.
    """
    mean = images.mean(dim=dims, keepdim=True, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for part in images.split(PART):
        squares += (part.double() - mean).square().sum(dim=dims, keepdim=True)
    values = images.numel() // mean.numel()
    return Statistics(mean, (squares / values).sqrt())


def matched(
    recovered: torch.Tensor,
    public: torch.Tensor,
    measure: Measure,
    usable: Callable[[torch.Tensor], torch.Tensor] = typical,
) -> torch.Tensor:
    """Give a recovered batch the location and scale of public images.

    ``out = (x - location_batch) / scale_batch * scale_public + location_public``, clamped to
    [0, 1]. Where the batch does not vary, it tells nothing and becomes the public location.

    Args:
        recovered: ``[n, channels, height, width]``, any values.
        public: ``[m, channels, height, width]`` in [0, 1].
        measure: takes images and returns their statistics.
        usable: which of the recovered images the statistics are taken over, as booleans ``[n]``;
            by default those that are not wild (:func:`fl_sim.restorations.base.typical`).

    Returns:
        float32 ``[n, channels, height, width]``; images with a value that is not finite are
        returned as they are.

    Raises:
        FlSimError: if there is no public image, or its shape is another one.
    """
    check_public(recovered, public)
    chosen = usable(recovered)
    if not bool(chosen.any()):
        return recovered.float()
    batch = recovered if bool(chosen.all()) else recovered[chosen]
    location, scale = measure(batch)
    target = measure(public)
    gain = torch.where(legible(location, scale), target.scale / scale, 0.0)
    restored = torch.empty_like(recovered, dtype=torch.float32)
    for first in range(0, len(recovered), PART):
        part = slice(first, first + PART)
        values = (recovered[part].double() - location) * gain + target.location
        restored[part] = values.clamp_(0.0, 1.0)
    return keep_broken(restored, recovered)


def legible(location: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return where a spread is more than what equal float32 numbers leave after rounding.

    Dividing by less would blow rounding up to a picture.
    """
    return scale > 4 * torch.finfo(torch.float32).eps * location.abs()


def keep_broken(restored: torch.Tensor, recovered: torch.Tensor) -> torch.Tensor:
    """Return restored images, but those with a value that is not finite as they were recovered."""
    good = finite(recovered)
    if bool(good.all()):
        return restored
    return torch.where(good[:, None, None, None], restored, recovered.float())
