"""What shadow heads are drawn from: initial weights and noise, each head's by its number alone."""

import numpy as np
import torch
from numpy.typing import NDArray


def initial_heads(
    heads: range, classes: int, features: torch.Tensor, init_std: float, seed: int
) -> torch.Tensor:
    """Return the initial weights of heads, each by its number alone, ``[heads, classes, D + 1]``.

    Args:
        heads: their numbers.
        classes: rows of a head.
        features: ``[images, D + 1]``, which says how wide and of what type.
        init_std: deviation; biases are 0.
        seed: what they are drawn from.
    """
    drawn = np.zeros((len(heads), classes, features.shape[1]), dtype=np.float32)
    drawn[:, :, :-1] = normals(heads, (classes, features.shape[1] - 1), seed, 0)
    return torch.from_numpy(drawn).to(features.dtype).mul_(init_std)


def noise_of_heads(heads: range, classes: int, features: torch.Tensor, seed: int) -> torch.Tensor:
    """Return standard normal numbers for each head's entries, ``[heads, classes, D + 1]``.

    Args:
        heads: their numbers.
        classes: rows of a head.
        features: ``[images, D + 1]``, the last column 0 for heads without bias, which get none.
        seed: what they are drawn from.
    """
    drawn = normals(heads, (classes, features.shape[1]), seed, 1)
    if not bool(features[:, -1].any()):
        drawn[:, :, -1] = 0
    return torch.from_numpy(drawn).to(features.dtype)


def normals(heads: range, shape: tuple[int, ...], seed: int, purpose: int) -> NDArray[np.float32]:
    """Return standard normal numbers, each head's by its number alone, ``[heads, *shape]``.

    Args:
        heads: their numbers.
        shape: of one head's.
        seed: what they are drawn from.
        purpose: draws of one seed for different purposes are independent of each other.
    """
    drawn = np.empty((len(heads), *shape), dtype=np.float32)
    for place, head in enumerate(heads):
        # A counter a head: any one can be drawn without those before it.
        philox = np.random.Philox(key=seed, counter=[0, head, purpose, 0])
        drawn[place] = np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
    return drawn
