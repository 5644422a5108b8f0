"""Losses between recovered and true images, differentiable and in single precision."""

from typing import Literal

import torch
from torch.nn import functional

MemoryLoss = Literal["l1", "mse", "ssim", "l1+ssim"]
WINDOW = 7


def memory_loss(kind: MemoryLoss, recovered: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss between ``[n, channels, height, width]`` batches.

    Args:
        kind: ``"l1"``, ``"mse"``, ``"ssim"`` for ``1 - SSIM``, or ``"l1+ssim"`` for L1 plus half of
            that.
        recovered: any real values.
        targets: in [0, 1].
    """
    if kind == "mse":
        return functional.mse_loss(recovered, targets)
    if kind == "l1":
        return functional.l1_loss(recovered, targets)
    dissimilarity = 1 - mean_ssim(recovered, targets)
    if kind == "ssim":
        return dissimilarity
    return functional.l1_loss(recovered, targets) + dissimilarity / 2


def restored_like(recovered: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Match a batch's mean and deviation at every pixel to the targets', differentiably.

    What :mod:`fl_sim.restorations.affine` does with public images: a loss on its result does not
    care for a shift or a loss of contrast that all recovered images share.

    Args:
        recovered: ``[n, channels, height, width]``, any values; one alone is left as it is.
        targets: of the same shape, in [0, 1].
    """
    if len(recovered) < 2:
        return recovered
    deviation, mean = torch.std_mean(recovered, dim=0, keepdim=True, correction=0)
    wanted, center = torch.std_mean(targets, dim=0, keepdim=True, correction=0)
    return (recovered - mean) / (deviation + 1e-4) * wanted + center


def mean_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean SSIM over a uniform 7x7 window with population covariance.

    A training loss; what is reported is :func:`fl_sim.metrics.leakage.ssim`.
    """

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, WINDOW, 1)

    mean_a, mean_b = mean(a), mean(b)
    variance_a = mean(a * a) - mean_a * mean_a
    variance_b = mean(b * b) - mean_b * mean_b
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)
    return (luminance * structure).mean()
