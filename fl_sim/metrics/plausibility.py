"""Which extraction an attacker would choose: the one that looks most like public images.

He tries several (as they came out, restored, found by a search) and has no true image to tell which
is best. What he has is public images of the same kind.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from fl_sim.errors import FlSimError
from fl_sim.randomness import torch_generator
from fl_sim.restorations.base import finite
from fl_sim.restorations.spectrum import principal_components

FEWEST = 8
"""Public images without which nothing can be said."""
WORST = 20.0
"""Score of a batch without a finite image, and the highest that there is."""

_MOST_SIDE = 32
_EXPLAINED = 0.95
_ALIKE = 0.1
_BATCHES = 200
_PASSED = 0.9
_LEAST = 1e-12


@dataclass(frozen=True)
class _Seen:
    """What is seen of images ``[n, ...]``, logarithms in float64.

    Args:
        residual: of each image's squared distance from the public mean the share that public
            images' principal components leave over, ``[n]`` in [0, 1].
        sharpness: logarithm of each image's mean squared gradient, ``[n]``.
        spread: mean squared distance from the batch's own mean image.
    """

    residual: torch.Tensor
    sharpness: torch.Tensor
    spread: float


class Plausibility:
    """Scores batches of images by how unlike public images they are; 0 is like them.

    The score is a sum of logarithms, each 0 where the batch is as public images are::

        max(0, log(residual / residual of public images))
        + |mean log sharpness - mean log sharpness of public images|
        + max(0, log(spread of public images / 10 / spread))

    The residual is the share of energy outside the principal components that explain 95 % of
    public images (of at most 512, at most 32 pixels wide): noise has much of it. Sharpness is the
    mean squared difference of neighbouring pixels: noise has too much, blur too little. The last
    term marks batches whose images are all alike, which restored garbage is. Components are taken
    from every other public image, and what is compared with from the rest.

    Up to :attr:`tolerance`, which nine in ten batches of as many public images do not exceed,
    batches are not told apart. The form was chosen on runs of a small network (Transpose on
    DermaMNIST and PneumoniaMNIST, undefended and after several defences); it has no weights.

    Args:
        public: ``[m, channels, height, width]`` in [0, 1]; :data:`FEWEST` at least.
        images: how many a batch has.

    Raises:
        FlSimError: if there are fewer public images.
    """

    def __init__(self, public: torch.Tensor, images: int) -> None:
        if len(public) < FEWEST:
            raise FlSimError(
                f"To tell what looks like public images takes {FEWEST} of them, not {len(public)}."
            )
        fitted, self._public = public[::2], public[1::2]
        small = _small(fitted)
        components, deviation = principal_components(small)
        energy = deviation.square().cumsum(0)
        kept = int((energy < _EXPLAINED * energy[-1:]).sum()) + 1
        self._mean, self._components = small.mean(dim=0, keepdim=True), components[:kept]
        self._typical = self._see(self._public)
        self.tolerance = self._tolerance(images)

    def score(self, images: torch.Tensor) -> float:
        """Return how unlike public images a batch is.

        Args:
            images: ``[n, channels, height, width]``, any values; taken as a viewer sees them, in
                [0, 1]. Each image that is not finite adds its share of the worst score.

        Returns:
            From 0, like public images, to :data:`WORST`.
        """
        good = finite(images)
        broken = 1.0 - float(good.double().mean())
        if not bool(good.any()):
            return WORST
        seen = self._see(images[good].float().clamp(0.0, 1.0))
        alike = 0.0
        if len(images) > 1 and self._typical.spread > _LEAST:
            alike = max(0.0, math.log(_ALIKE * self._typical.spread / max(seen.spread, _LEAST)))
        unlike = self._unlike(seen.residual, seen.sharpness) + alike
        return min(WORST, (1.0 - broken) * unlike + broken * WORST)

    def _unlike(self, residual: torch.Tensor, sharpness: torch.Tensor) -> float:
        usual = float(self._typical.residual.mean().clamp(min=_LEAST))
        outside = max(0.0, math.log(max(float(residual.mean()), _LEAST) / usual))
        return outside + abs(float(sharpness.mean() - self._typical.sharpness.mean()))

    def _see(self, images: torch.Tensor) -> _Seen:
        apart = (_small(images) - self._mean).flatten(1).double()
        size = apart.square().sum(dim=1)
        inside = (apart @ self._components.T.double()).square().sum(dim=1)
        # An image that is the mean itself shows nothing of its own.
        residual = torch.where(size > _LEAST, 1.0 - inside / size.clamp(min=_LEAST), 1.0)
        return _Seen(
            residual=residual.clamp(0.0, 1.0),
            sharpness=_gradient(images).clamp(min=_LEAST).log(),
            spread=float((images - images.mean(dim=0)).double().square().mean()),
        )

    def _tolerance(self, images: int) -> float:
        """Return what nine in ten batches of public images stay below."""
        generator = torch_generator(0, "public batches")
        size = (_BATCHES, min(images, len(self._public)))
        picks = torch.randint(len(self._public), size, generator=generator)
        seen = self._typical
        scores = [
            self._unlike(seen.residual[batch], seen.sharpness[batch])
            for batch in picks.to(seen.residual.device)
        ]
        return sorted(scores)[int(_PASSED * _BATCHES)]


def _gradient(images: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of neighbouring pixels of each image, float64 ``[n]``."""
    across = images.diff(dim=-1).double().square().flatten(1).mean(dim=1)
    down = images.diff(dim=-2).double().square().flatten(1).mean(dim=1)
    return across + down


def _small(images: torch.Tensor) -> torch.Tensor:
    """Return images at most 32 pixels wide and high, averaged over areas."""
    height, width = images.shape[2:]
    if max(height, width) <= _MOST_SIDE:
        return images
    return functional.adaptive_avg_pool2d(images, (min(height, _MOST_SIDE), min(width, _MOST_SIDE)))
