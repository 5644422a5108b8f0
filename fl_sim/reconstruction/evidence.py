"""Evidence: whether a reconstruction tells of a head's own images, against heads that do not know.

An image of a class is reconstructed from a victim's head, and its error is the least mean square
error to the victim's images of that class. The same error of reconstructions from other heads is
what chance and knowledge of the kind of images give; a victim's counts as found where its error is
below a threshold that so many of those stay above. Of two hypotheses, the test by likelihood ratio
is the most powerful (Neyman and Pearson 1933); here the ratio is taken to fall with the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.population import Population
from fl_sim.reconstruction.ridge import Gauge, in_gauge
from fl_sim.statistics import Interval, mean_interval

Floats = NDArray[np.float64]
FALSE_POSITIVES = 0.01
_MOST_SHADOWS = 4096
"""Shadow heads that their Gaussian is taken from at most."""


@dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic, from nothing found to all found.

    Args:
        false_positives, true_positives: ``[points]`` in [0, 1], rising.
    """

    false_positives: Floats
    true_positives: Floats


@dataclass(frozen=True)
class Evidence:
    """How much better images are reconstructed from their own head than from others.

    Args:
        own: ``[victims, classes]``, least mean square errors from victims' own heads.
        null: ``[n, classes]``, from heads drawn from the shadow heads' Gaussian.
        strict: ``[m, classes]``, from other victims' heads, and from decoys.
        found: ``[victims, classes]``, whether the nearest of all victims' images of the class (or
            of a gallery's) is one of the victim's own.
        chance: share of them that guessing finds.
    """

    own: Floats
    null: Floats
    strict: Floats
    found: NDArray[np.bool_]
    chance: float

    def true_positives(
        self, level: float = FALSE_POSITIVES, strict: bool = False, confidence: float = 0.95
    ) -> Interval:
        """Return the share of images found at a share of false positives; see :func:`found_at`."""
        return found_at(self.own, self.strict if strict else self.null, level, confidence)

    def roc(self, strict: bool = False) -> Roc:
        """Return the whole curve against either null; see :func:`roc`."""
        return roc(self.own, self.strict if strict else self.null)

    @property
    def identified(self) -> Interval:
        """Share of images whose nearest is their own, with its interval over victims."""
        return _share(self.found, 0.95)


def least_errors(images: torch.Tensor, originals: torch.Tensor) -> Floats:
    """Return the least mean square error of each image to the originals of its class.

    Args:
        images: ``[n, classes, channels, height, width]`` in [0, 1].
        originals: ``[n, classes, per_class, channels, height, width]``.

    Returns:
        ``[n, classes]``.
    """
    errors = [
        (images - originals[:, :, one]).square().flatten(2).mean(dim=2)
        for one in range(originals.shape[2])  # one by one, so that memory stays that of one
    ]
    return torch.stack(errors).amin(dim=0).double().cpu().numpy()


def gaussian_heads(
    shadows: Population, draws: int, stream: Stream, gauge: Gauge = "weights"
) -> torch.Tensor:
    """Draw heads from the Gaussian of the shadow heads, with their whole covariance.

    Sums of the shadows' distances from their mean, with normal factors, have exactly their
    covariance, which need not be formed.

    Args:
        shadows: of which so many are used at most (4,096).
        draws: how many, at least 1.
        stream: where they are drawn from.
        gauge: what heads are known up to.

    Returns:
        ``[draws, classes, D + 1]``.
    """
    heads = min(len(shadows), _MOST_SHADOWS)
    generator = stream.torch_generator("shadow Gaussian")
    factors = torch.randn(draws, heads, generator=generator) / max(1, heads - 1) ** 0.5
    # What the mean is taken with is taken away from the factors, so that one pass does.
    factors = factors - factors.mean(dim=1, keepdim=True) + 1.0 / heads
    drawn = torch.zeros(draws, shadows.classes * shadows.inputs)
    first = 0
    for rows, weights in shadows.chunks(0, heads):
        drawn += factors[:, first : first + len(rows)] @ in_gauge(weights.float(), gauge).flatten(1)
        first += len(rows)
    return drawn.reshape(draws, shadows.classes, -1)


def weigh(
    recovered: torch.Tensor,
    null: torch.Tensor,
    originals: torch.Tensor,
    *,
    decoys: torch.Tensor | None = None,
    gallery: Sequence[torch.Tensor] | None = None,
) -> Evidence:
    """Weigh what was reconstructed from victims' heads against both nulls.

    Args:
        recovered: ``[victims, classes, channels, height, width]``.
        null: ``[draws, classes, channels, height, width]``, from heads that know no victim; each
            is held against every victim's images.
        originals: ``[victims, classes, per_class, channels, height, width]``.
        decoys: ``[heads, classes, channels, height, width]``, from trained heads that are no
            victim's, which the strict null has beside other victims'.
        gallery: of each class the images ``[n, channels, height, width]`` that the nearest is
            looked for among, with the victims' own; other victims' where not given.

    Raises:
        FlSimError: if there is one victim, and nothing to compare it with.
    """
    victims = len(recovered)
    if victims < 2 and (decoys is None or gallery is None):
        raise FlSimError(
            f"Evidence needs other victims' heads to compare with, but there are {victims} "
            f"victims; give two or more."
        )
    crossed = np.stack([least_errors(recovered, own.expand_as(originals)) for own in originals])
    own = np.stack([crossed[victim, victim] for victim in range(victims)])
    others = crossed[~np.eye(victims, dtype=bool)]
    strict = others if decoys is None else np.concatenate([others, _crossed(decoys, originals)])
    found, chance = own <= crossed.min(axis=0), 1 / victims
    if gallery is not None:
        found, chance = _nearest(own, recovered, gallery, originals.shape[2])
    return Evidence(own, _crossed(null, originals), strict, found, chance)


def _crossed(images: torch.Tensor, originals: torch.Tensor) -> Floats:
    """Return errors of all images to every victim's, ``[images * victims, classes]``."""
    crossed = [least_errors(images, own.expand(len(images), *own.shape)) for own in originals]
    return np.concatenate(crossed)


def _nearest(
    own: Floats, recovered: torch.Tensor, gallery: Sequence[torch.Tensor], per_class: int
) -> tuple[NDArray[np.bool_], float]:
    """Return whether no image of a gallery is nearer than the own ones, and what guessing finds.

    Args:
        own: ``[victims, classes]``, errors to the own images, which may be in the gallery.
        recovered: ``[victims, classes, channels, height, width]``.
        gallery: images of each class.
        per_class: own images of a victim.
    """
    pixels = recovered[0, 0].numel()
    nearest = [
        torch.cdist(recovered[:, label].flatten(1), images.flatten(1)).amin(dim=1) ** 2 / pixels
        for label, images in enumerate(gallery)
    ]
    found = own <= torch.stack(nearest, dim=1).double().numpy() * (1 + 1e-3) + 1e-9
    chance = float(np.mean([per_class / max(per_class, len(images)) for images in gallery]))
    return found, chance


def roc(own: ArrayLike, null: ArrayLike) -> Roc:
    """Return shares of both that are below each threshold.

    Args:
        own: errors of what was reconstructed from own heads, any shape.
        null: of others.
    """
    from sklearn.metrics import roc_curve

    found, other = (np.asarray(errors, dtype=np.float64).ravel() for errors in (own, null))
    truth = np.repeat([1, 0], [len(found), len(other)])
    false, true, _ = roc_curve(truth, -np.concatenate([found, other]), drop_intermediate=False)
    return Roc(false, true)


def threshold(null: ArrayLike, level: float = FALSE_POSITIVES) -> float:
    """Return the error that a share ``level`` of the null, or less, is below.

    Args:
        null: errors, any shape.
        level: in (0, 1); with fewer than ``1 / level`` errors none is below.
    """
    errors = np.sort(np.asarray(null, dtype=np.float64).ravel())
    return float(errors[int(level * len(errors))])


def found_at(
    own: ArrayLike, null: ArrayLike, level: float = FALSE_POSITIVES, confidence: float = 0.95
) -> Interval:
    """Return the share of images found at a share of false positives, with Wilson's interval.

    Images of one victim are not independent of each other: the interval is of as many images as
    the spread between victims is worth; see :func:`fl_sim.statistics.mean_interval`. It does not
    have the doubt of the threshold, which a large null makes small.

    Args:
        own: ``[victims, classes]``, errors from own heads.
        null: errors from others, any shape.
        level: false positives, in (0, 1).
        confidence: of the interval.
    """
    return _share(np.asarray(own) < threshold(null, level), confidence)


def _share(found: NDArray[np.bool_], confidence: float) -> Interval:
    shares = found.mean(axis=1)
    return mean_interval(shares, confidence, limits=(0.0, 1.0), trials=found.shape[1])
