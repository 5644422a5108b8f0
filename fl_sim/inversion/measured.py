"""What class representatives show of the images that a network was trained on.

A representative belongs to no single image, so it is compared with all training images of its
class: its SSIM is that with the nearest of them. Beside it stand what needs no model: the mean
public image of the class, and a public image of the class drawn at random, in the same place. And
since anybody's image of a class is like some training image, the nearest one is looked for among as
many public images, too: where it is a training image more often than every second time, the network
shows its training images and not only its classes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fl_sim.data.base import Split
from fl_sim.errors import FlSimError
from fl_sim.inversion.search import Inversion
from fl_sim.metrics.leakage import ssim
from fl_sim.randomness import Stream

MOST_OF_CLASS = 256
"""Training images of a class, and public ones, that are compared with."""
CHANCE = 0.5


@dataclass(frozen=True)
class Shown:
    """What class representatives show.

    Args:
        ssim: mean SSIM with the nearest training image of the class.
        class_mean: the same of the class's mean public image.
        random: the same of public images of the class.
        nearest: ``[n]``, what each representative has.
        trained_on: share of the representatives whose nearest image is a training image, among as
            many training and public images of the class; guessing has :data:`CHANCE`.
        images: representatives that were compared.
    """

    ssim: float
    class_mean: float
    random: float
    nearest: torch.Tensor = field(repr=False)
    trained_on: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {
            "ssim_nearest": self.ssim,
            "ssim_nearest_of_class_mean": self.class_mean,
            "ssim_nearest_of_random": self.random,
            "nearest_was_trained_on": self.trained_on,
            "nearest_was_trained_on_by_guessing": CHANCE,
            "images": float(self.images),
        }


def shown(found: Inversion, train: Split, public: Split, stream: Stream) -> Shown:
    """Compare class representatives with training images and with public ones.

    A class is left out that either has no image of. In a multi-label task the images of a class are
    those that have the label.

    Args:
        found: the representatives.
        train: images that the network was trained on.
        public: images of the same kind that it has never seen.
        stream: which images are taken where a class has many.

    Raises:
        FlSimError: if sizes do not fit, or no class has images of both kinds.
    """
    size = tuple(found.images.shape[1:])
    for split, what in ((train, "training"), (public, "public")):
        channels_last = tuple(split.images.shape[1:])
        if (channels_last[2], *channels_last[:2]) != size:
            raise FlSimError(
                f"The {what} images have shape {list(channels_last)}, and the network's "
                f"{[size[1], size[2], size[0]]}; give those that it was trained on."
            )
    parts = [
        part
        for label in found.labels.unique().tolist()
        if (part := _of_class(found, int(label), train, public, stream)) is not None
    ]
    if not parts:
        raise FlSimError("No class has both training and public images to compare with.")
    nearest = torch.cat([part[0] for part in parts])
    means, random, trained_on = (
        float(torch.cat([part[place] for part in parts]).mean()) for place in (1, 2, 3)
    )
    return Shown(float(nearest.mean()), means, random, nearest, trained_on, len(nearest))


_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _of_class(
    found: Inversion, label: int, train: Split, public: Split, stream: Stream
) -> _Parts | None:
    """Return what one class's representatives have, its floors, and which nearest are trained on.

    Each ``[n]``, or ``None`` where the class has too few images.
    """
    representatives = found.images[found.labels == label]
    generator = stream.at(label).numpy("images of a class")
    seen, fresh = (_images(split, label, generator) for split in (train, public))
    if not len(seen) or not len(fresh):
        return None
    mean = _nearest(fresh.mean(dim=0, keepdim=True), seen).expand(len(representatives))
    others = fresh[torch.from_numpy(generator.integers(0, len(fresh), len(representatives)))]
    each = min(len(seen), len(fresh))
    own = _nearest(representatives, seen[:each])
    other = _nearest(representatives, fresh[:each])
    wins = torch.where(own == other, torch.full_like(own, CHANCE), (own > other).float())
    return _nearest(representatives, seen), mean, _nearest(others, seen), wins


def _images(split: Split, label: int, generator: np.random.Generator) -> torch.Tensor:
    labels = np.asarray(split.labels)
    of_class = labels[:, label] == 1 if labels.ndim == 2 else labels == label
    rows = generator.permutation(np.flatnonzero(of_class))[:MOST_OF_CLASS]
    return split.batch(rows.astype(np.int64))[0]


def _nearest(images: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return each image's highest SSIM with a candidate, ``[n]``."""
    rows = [
        float(ssim(image[None].expand(len(candidates), *image.shape), candidates).max())
        for image in images
    ]
    return torch.tensor(rows)
