"""Floors: what an attacker reaches who has no model at all, only public images of the dataset.

A metric of pairs of images says which floors it has, ``<metric>_floor_mean`` and so on, and they
are measured in the same way: with public images in place of the recovered ones.

A leak is what a recovered image has beyond its floor. The floors are taken on the very images
that were stolen, since with 64 images they vary by 0.1 from one draw of images to the next.
"""

from collections.abc import Callable

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import HIGHER_LEAKS, METRICS, Metric
from fl_sim.randomness import torch_generator
from fl_sim.restorations.base import check_public

DRAWS = 8

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A metric of each pair of images ``[n, channels, height, width]``, ``[n]``."""


def floor_mean(score: Score, originals: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Score the mean public image against each original.

    Args:
        score: the metric.
        originals: ``[n, channels, height, width]`` in [0, 1].
        public: ``[m, channels, height, width]`` in [0, 1].

    Returns:
        float32 ``[n]``.

    Raises:
        FlSimError: if there is no public image, or shapes do not fit.
    """
    check_public(originals, public)
    return score(_mean_image(public).expand_as(originals), originals)


def floor_class_mean(
    score: Score,
    originals: torch.Tensor,
    public: torch.Tensor,
    labels: torch.Tensor,
    public_labels: torch.Tensor,
) -> torch.Tensor:
    """Score the mean public image of the right class against each original.

    The class is the label, or for a multi-label task the set of labels. An original of a class
    that no public image has is compared with the mean of all of them.

    Args:
        score: the metric.
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
    return score(guesses, originals)


def floor_random(
    score: Score, originals: torch.Tensor, public: torch.Tensor, seed: int, draws: int = DRAWS
) -> torch.Tensor:
    """Score another, random public image against each original, mean over draws.

    Args:
        score: the metric.
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
    generator = torch_generator(seed, "ssim_floor_random")  # the same draws for every metric
    total = torch.zeros(len(originals), dtype=torch.float64)
    for _ in range(draws):
        picks = torch.randint(len(others), (len(originals),), generator=generator)
        total += score(others[picks.to(others.device)], originals).double().cpu()
    return (total / draws).float()


def _mean_image(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=0, keepdim=True, dtype=torch.float64).float()


def _strangers(public: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    stolen = {image.tobytes() for image in originals.detach().cpu().numpy()}
    return torch.tensor([image.tobytes() not in stolen for image in public.cpu().numpy()])


METRICS.register("ssim_floor_mean", "SSIM of the mean public image with the originals")(
    Metric(
        "Mean of public images",
        "leakage",
        HIGHER_LEAKS,
        range=(-1.0, 1.0),
        heading="floor\nmean",
        shown=("run",),
        word="mean public image",
        mark="mean image",
        order=10,
    )
)
METRICS.register(
    "ssim_floor_class_mean", "SSIM of the mean public image of the same class with the originals"
)(
    Metric(
        "Mean of the class's public images",
        "leakage",
        HIGHER_LEAKS,
        range=(-1.0, 1.0),
        shown=(),
        word="mean public image of the class",
        order=10,
    )
)
METRICS.register("ssim_floor_random", "SSIM of public images drawn at random with the originals")(
    Metric(
        "Another public image",
        "leakage",
        HIGHER_LEAKS,
        range=(-1.0, 1.0),
        heading="floor\nrandom",
        shown=("run",),
        minor=True,
        word="random public image",
        order=10,
    )
)
