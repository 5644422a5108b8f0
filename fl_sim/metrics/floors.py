"""Floors: the SSIM of an attacker who has no model at all, only public images of the dataset.

A leak is what a recovered image has beyond its floor. The floors are taken on the very images
that were stolen, since with 64 images they vary by 0.1 from one draw of images to the next.
"""

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import ssim
from fl_sim.randomness import torch_generator
from fl_sim.restorations.base import check_public

DRAWS = 8


def ssim_floor_mean(originals: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """SSIM of the mean public image with each original.

    Args:
        originals: ``[n, channels, height, width]`` in [0, 1].
        public: ``[m, channels, height, width]`` in [0, 1].

    Returns:
        float32 ``[n]``.

    Raises:
        FlSimError: if there is no public image, or shapes do not fit.
    """
    check_public(originals, public)
    return ssim(_mean_image(public).expand_as(originals), originals)


def ssim_floor_class_mean(
    originals: torch.Tensor,
    public: torch.Tensor,
    labels: torch.Tensor,
    public_labels: torch.Tensor,
) -> torch.Tensor:
    """SSIM of the mean public image of the right class with each original.

    The class is the label, or for a multi-label task the set of labels. An original of a class
    that no public image has is compared with the mean of all of them.

    Args:
        originals: ``[n, channels, height, width]`` in [0, 1].
        public: ``[m, channels, height, width]`` in [0, 1].
        labels: of the originals, ``[n]``, or ``[n, labels]`` of zeros and ones.
        public_labels: of the public images, likewise.

    Returns:
        float32 ``[n]``.

    Raises:
        FlSimError: if there is no public image, or shapes do not fit.
    """
    check_public(originals, public)
    if len(labels) != len(originals) or len(public_labels) != len(public):
        raise FlSimError(
            f"{len(labels)} labels for {len(originals)} originals and {len(public_labels)} labels "
            f"for {len(public)} public images: there must be one an image."
        )
    guesses = _mean_image(public).repeat(len(originals), 1, 1, 1)
    known, wanted = public_labels.reshape(len(public), -1), labels.reshape(len(labels), -1)
    for label in torch.unique(wanted, dim=0):
        same = (known == label).all(dim=1)
        if bool(same.any()):
            guesses[(wanted == label).all(dim=1)] = _mean_image(public[same])
    return ssim(guesses, originals)


def ssim_floor_random(
    originals: torch.Tensor, public: torch.Tensor, seed: int, draws: int = DRAWS
) -> torch.Tensor:
    """SSIM of another, random public image with each original, mean over draws.

    Args:
        originals: ``[n, channels, height, width]`` in [0, 1].
        public: ``[m, channels, height, width]`` in [0, 1]; those identical to an original are
            never drawn, since they would be no stranger's image.
        seed: the scenario's.
        draws: public images drawn for each original.

    Returns:
        float32 ``[n]``.

    Raises:
        FlSimError: if there is no public image other than the originals, or shapes do not fit.
    """
    check_public(originals, public)
    others = public[_strangers(public, originals)]
    if len(others) == 0:
        raise FlSimError("Every public image is one of the stolen ones: there is no random floor.")
    generator = torch_generator(seed, "ssim_floor_random")
    total = torch.zeros(len(originals), dtype=torch.float64)
    for _ in range(draws):
        picks = torch.randint(len(others), (len(originals),), generator=generator)
        total += ssim(others[picks.to(others.device)], originals).double().cpu()
    return (total / draws).float()


def _mean_image(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=0, keepdim=True, dtype=torch.float64).float()


def _strangers(public: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    stolen = {image.tobytes() for image in originals.detach().cpu().numpy()}
    return torch.tensor([image.tobytes() not in stolen for image in public.cpu().numpy()])
