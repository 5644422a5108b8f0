"""Code alignment: the codes that a released model answers to best, found without any original.

What happened to a network on its way can shift how it reads codes: a last layer that was trained
on, scaled or pruned weighs the class part against the number part, or all of it, differently from
when the images were memorised. A receiver may try codes of other proportions, and take those whose
images are, as a batch, most like public images of the kind.
"""

from collections.abc import Callable

import torch

from fl_sim.restorations.affine import affine
from fl_sim.restorations.base import typical
from fl_sim.restorations.spectrum import principal_components

STEPS = (2.0, 1.5, 1.25, 1.1)
_MOST = 64
_BETTER = 0.05
_LEAST = 1e-12


def align(
    backwards: Callable[[torch.Tensor], torch.Tensor],
    codes: torch.Tensor,
    base: int,
    public: torch.Tensor,
) -> torch.Tensor:
    """Search the scale of all codes and the weight of their class part.

    Coordinate descent by factors, from 2 down to 1.1: a step is taken where the batch that comes
    out fits public images better (:func:`misfit`). Up to 64 of the codes are tried.

    A ReLU network without biases passes a scale of all codes on to the image, where the affine
    restoration removes it, and one that normalises hardly tells scales apart; the class part's
    weight is what no restoration can make up for.

    Args:
        backwards: the transposed pass.
        codes: as in the key, ``[n, outputs]``.
        base: of the Gray code; an entry of at least that holds a part of the class.
        public: ``[m, channels, height, width]`` in [0, 1].

    Returns:
        Codes ``[n, outputs]``; the key's, scaled to at most 1, where no others are better.
    """
    largest = codes.abs().max()
    classes = torch.where(codes >= base, float(base), 0.0)
    numbers = codes - classes
    some = slice(None, None, -(-len(codes) // _MOST))
    basis = principal_components(public)
    # The variance of the logarithm of a variance that so many images tell.
    chance = 2 / len(codes[some])

    def of(scale: float, weight: float) -> torch.Tensor:
        return scale * (numbers + weight * classes) / largest

    best = (1.0, 1.0)
    least = misfit(backwards(of(*best)[some]), public, basis)
    for step in STEPS:
        for scale, weight in ((step, 1.0), (1 / step, 1.0), (1.0, step), (1.0, 1 / step)):
            factors = (best[0] * scale, best[1] * weight)
            found = misfit(backwards(of(*factors)[some]), public, basis)
            if found < least - max(_BETTER * least, chance):
                best, least = factors, found
    return of(*best)


def misfit(
    recovered: torch.Tensor, public: torch.Tensor, basis: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Return how unlike public images a batch is, whatever was done to all its images alike.

    The batch is restored affinely first. Then each principal component of the public images has
    its energy in the batch compared with that in the public images: the mean square of the
    logarithm of their ratio.

    Args:
        recovered: ``[n, channels, height, width]``, any values.
        public: ``[m, channels, height, width]`` in [0, 1].
        basis: their principal components and deviations.

    Returns:
        0 for a batch of the same spectrum; infinity where no image is usable.
    """
    components, deviation = basis
    usable = typical(recovered)
    if not bool(usable.any()):
        return float("inf")
    residual = (affine(recovered[usable], public) - public.mean(dim=0, keepdim=True)).flatten(1)
    energy = (residual @ components.T).double().square().mean(dim=0)
    ratio = energy.clamp(min=_LEAST) / deviation.square().clamp(min=_LEAST)
    return float(ratio.log().square().mean()) if len(ratio) else 0.0
