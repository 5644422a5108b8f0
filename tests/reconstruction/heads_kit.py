"""Victims' heads and an attacker's images, small enough to train in a moment."""

import numpy as np
import torch

from fl_sim.data.base import Task
from fl_sim.randomness import Stream
from fl_sim.reconstruction.few_shot import FewShotSettings
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.sealing.heads import HeadSettings, Linear, train_head

CLASSES = 3
HEAD = HeadSettings(epochs=20, learning_rate=0.1, weight_decay=1e-3, init_std=0.002)
SETTINGS = FewShotSettings(shadows=800, head=HEAD)
TASK = Task("multi-class", ("a", "b", "c"))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features ``[count, 64]``, which are a turn of the pixels, the pixels, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.arange(count) % CLASSES
    few = torch.randn(count, 12, generator=generator)
    patterns = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    kinds = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(2))
    pixels = (0.5 + 0.04 * few @ patterns + 0.1 * kinds[labels]).clamp(0, 1).reshape(-1, 1, 8, 8)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)))[0]
    return (pixels.flatten(1) - 0.5) @ turn, pixels, labels


def victims(count: int, per_class: int = 1) -> tuple[list[Linear], torch.Tensor]:
    """Heads, and their images ``[count, classes, per_class, 1, 8, 8]``."""
    features, pixels, labels = images(count * per_class * CLASSES, seed=9)
    rows = balanced_sets(labels, CLASSES, count, per_class, Stream(9))
    own = torch.from_numpy(labels_of_sets(CLASSES, per_class))
    heads = [
        train_head(features[row], own, TASK, HEAD, Stream(9).at(victim))[0][0]
        for victim, row in enumerate(rows)
    ]
    return heads, pixels[rows].reshape(count, CLASSES, per_class, 1, 8, 8)
