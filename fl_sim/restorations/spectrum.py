"""Spectral restoration: the deviation along each principal component matched to public images."""

import torch
from torch.nn import functional

from fl_sim.restorations.affine import affine
from fl_sim.restorations.base import RESTORATIONS, typical
from fl_sim.restorations.statistics import PART, keep_broken, legible

_MOST = 512
_SMOOTHING = 2


@RESTORATIONS.register(
    "spectrum", "affine, then the deviation along each public principal component matched"
)
def spectrum(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Undo what the affine restoration leaves: too much of what images of the kind hardly have.

    After :func:`fl_sim.restorations.affine.affine`, each image is taken apart along the principal
    components of the public images, and each coefficient scaled so that its deviation over the
    batch becomes the public one; what lies outside them is dropped. Noise has most of its energy
    where images have little, and so loses it; it is the affine idea in the basis in which images
    of the kind are uncorrelated. Gains are smoothed over five neighbouring components (in
    logarithms), since small batches tell each deviation only roughly.

    Few public images span little: what they do not show is lost. At most 512 of them are used.

    Args:
        recovered: ``[n, channels, height, width]``, any values. Wild images
            (:func:`fl_sim.restorations.base.typical`) are left out of the statistics.
        public: ``[m, channels, height, width]`` in [0, 1]. One alone has no components: the result
            is then the affine one.

    Returns:
        float32 ``[n, channels, height, width]`` in [0, 1]; images with a value that is not finite
        are returned as they are.

    Raises:
        FlSimError: if there is no public image, or its shape is another one.
    """
    images = affine(recovered, public)
    usable = typical(recovered)
    mean = public.mean(dim=0, keepdim=True)
    components, deviation = principal_components(public)
    if len(components) == 0 or not bool(usable.any()):
        return images
    coefficients = (images - mean).flatten(1) @ components.T
    spread = coefficients[usable].square().mean(dim=0, dtype=torch.float64).sqrt()
    gain = _smoothed_gain(deviation, spread).float()
    restored = torch.empty_like(images)
    for first in range(0, len(images), PART):
        part = slice(first, first + PART)
        values = (coefficients[part] * gain) @ components
        restored[part] = (values.reshape(-1, *images.shape[1:]) + mean).clamp(0.0, 1.0)
    return keep_broken(restored, recovered)


def principal_components(public: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal components of public images, and their deviation along each.

    Of at most 512 evenly spaced images; from their products with each other, since there are fewer
    images than values.

    Args:
        public: ``[m, channels, height, width]``.

    Returns:
        Orthonormal components, float32 ``[k, channels * height * width]``, strongest first, and
        float64 ``[k]``. There is none where the images are all the same.
    """
    public = public[:: -(-len(public) // _MOST)]
    centred = (public - public.mean(dim=0, keepdim=True)).flatten(1)
    products = (centred @ centred.T).double()
    energy, vectors = torch.linalg.eigh(products)
    energy, vectors = energy.flip(0).clamp(min=0.0), vectors.flip(1)
    # One dimension went with the mean; what is left of it, and of repeated images, is rounding.
    kept = energy > 1e-5 * energy[0].clamp(min=1e-12)
    size = energy[kept].sqrt()
    components = (vectors[:, kept] / size).T.float() @ centred
    return components, size / len(public) ** 0.5


def _smoothed_gain(target: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Return ``target / spread``, averaged over neighbours in logarithms; 0 where nothing is."""
    told = legible(target, spread)
    ratio = torch.where(told, target / spread, 1.0).log()[None, None]
    padded = functional.pad(ratio, (_SMOOTHING, _SMOOTHING), mode="replicate")
    smooth = functional.avg_pool1d(padded, 2 * _SMOOTHING + 1, stride=1)[0, 0].exp()
    return torch.where(told, smooth, 0.0)
