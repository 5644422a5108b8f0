"""Views of images: turned, flipped and mixed, with the labels that belong to them.

The same views serve training, fine-tuning and distillation, so that a defence can be compared with
controls that saw as much.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from fl_sim.data.base import Task

Orientations = Literal["none", "flip", "square"]


def label_shares(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """Return labels as shares of each output, float ``[n, outputs, ...]``, which can be mixed."""
    if task.multi_label:
        return labels.float()
    return one_hot(labels, task.outputs).movedim(-1, 1).float()


def shares_loss(logits: torch.Tensor, shares: torch.Tensor, task: Task) -> torch.Tensor:
    """Return the mean cross entropy of logits and shares, both ``[n, outputs, ...]``."""
    if task.multi_label:
        return binary_cross_entropy_with_logits(logits, shares)
    return cross_entropy(logits, shares)


def view(
    pixels: torch.Tensor,
    truth: torch.Tensor,
    orientations: Orientations,
    mixup: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random view of each image, and of what it shows.

    Args:
        pixels: ``[n, channels, side, side]``.
        truth: shares ``[n, outputs]``, which are mixed as images are, or ``[n, outputs, side,
            side]`` of pixels, which are turned with them, too. Without mixup also labels ``[n]``.
        orientations: ``"none"``, also flipped left to right (``"flip"``), or all eight orientations
            of a square (``"square"``).
        mixup: images are mixed pairwise with shares drawn from 0 to this one (Zhang et al.,
            "mixup", ICLR 2018, with uniform shares); 0 for none.
        generator: the randomness.
    """
    count = len(pixels)
    shown = [pixels, truth]

    def half(turn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        chosen = torch.from_numpy(generator.random(count) < 0.5)[:, None, None, None]
        for number, tensor in enumerate(shown):
            if tensor.dim() == 4:
                shown[number] = torch.where(chosen, turn(tensor), tensor)

    if orientations != "none":
        half(lambda tensor: tensor.flip(-1))
    if orientations == "square":
        half(lambda tensor: tensor.flip(-2))
        half(lambda tensor: tensor.transpose(-1, -2))
    if mixup:
        share = torch.from_numpy(generator.random(count)).float() * mixup
        order = torch.from_numpy(generator.permutation(count))
        for number, tensor in enumerate(shown):
            weight = share.reshape(-1, *[1] * (tensor.dim() - 1))
            shown[number] = torch.lerp(tensor, tensor[order], weight)
    return shown[0], shown[1]


def labelled_view(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    orientations: Orientations,
    mixup: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random view of labelled images: with labels as they are, or mixed into shares.

    Args:
        pixels: ``[n, channels, side, side]``.
        labels: ``[n]``, ``[n, labels]`` of several labels, or masks ``[n, side, side]``.
        task: what they are of.
        orientations, mixup, generator: see :func:`view`.

    Returns:
        Views, and labels of the shape that they had; with mixup label shares, see
        :func:`label_shares`.
    """
    if mixup:
        return view(pixels, label_shares(labels, task), orientations, mixup, generator)
    if task.is_segmentation:
        pixels, masks = view(pixels, labels[:, None], orientations, 0.0, generator)
        return pixels, masks[:, 0]
    return view(pixels, labels, orientations, 0.0, generator)
