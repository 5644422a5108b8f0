"""``fl_sim.restore``: repair recovered images as an attacker does before he looks at them."""

from typing import Any

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import sanitize
from fl_sim.metrics.measure import Choice
from fl_sim.restorations.base import check_public, choose, extractions
from fl_sim.verbs.images import pictures
from fl_sim.words import RAW


@torch.no_grad()
def restore(
    stolen: Any, /, *, public: Any, restoration: str | None = None, device: str | None = None
) -> torch.Tensor:
    """Repair recovered images as an attacker does, who has public images and no true one.

    They are the images that :func:`fl_sim.measure` measures in its row ``chosen``, or in the row of
    the restoration that is named.

    Args:
        stolen: what :func:`fl_sim.extract` returned, ``[n, channels, height, width]``, any values.
        public: images of the same kind that an attacker may have, never those that were stolen.
        restoration: its name (``fl-sim list restorations``); ``"raw"`` for none; by default the
            one that looks most like the public images.
        device: where to compute; by default where the recovered images are.

    Returns:
        What the attacker sees, float32 ``[n, channels, height, width]`` in [0, 1], in the order of
        ``stolen``; an image that is not finite is black.

    Raises:
        FlSimError: for an unknown restoration, no image, or shapes that do not fit.
    """
    out = torch.as_tensor(stolen, dtype=torch.float32)
    out = out if device is None else out.to(device)
    if out.ndim != 4 or not len(out):
        raise FlSimError(
            f"Recovered images have the shape [n, channels, height, width] with n >= 1, not "
            f"{list(out.shape)}."
        )
    outside = pictures(public, "public images").to(out.device)
    check_public(out, outside)
    named = choose(None if restoration is None else {restoration} - {RAW})
    choice, found = Choice(outside, len(out)), out
    for name, images in extractions(out, outside, named):
        choice.see(name, images)
        if name == (restoration or choice.chosen):
            found = images
    return sanitize(found, out.shape)[0]
