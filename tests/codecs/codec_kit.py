"""Small codecs on made-up images, trained once a test session."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fl_sim.codec import CODECS
from fl_sim.codecs.learned import CompressAICodec
from fl_sim.randomness import Stream

LEARNED = ("factorized", "scale_hyperprior", "mean_scale_hyperprior")


def images(count: int, channels: int = 3, height: int = 28, width: int = 28) -> torch.Tensor:
    """Smooth images: a bright disc somewhere on a ramp."""
    random = np.random.default_rng(count)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    made = np.empty((count, channels, height, width), dtype=np.float32)
    for image in made:
        ramp = random.random(3)
        disc = (x - random.random()) ** 2 + (y - random.random()) ** 2 < 0.08
        for channel in image:
            channel[:] = np.clip(0.4 * ramp[0] * x + 0.4 * ramp[1] * y + 0.4 * disc, 0, 1)
            channel *= 0.6 + 0.4 * random.random()
    return torch.from_numpy(made)


@lru_cache
def trained(name: str) -> CompressAICodec[Any]:
    """A codec after a few steps; tests must not change it."""
    kind: Any = CODECS.get(name)
    codec: CompressAICodec[Any] = kind(
        kind.Settings(N=12, M=6, lmbda=0.1, learning_rate=4e-3, max_steps=150, batch_size=16)
    )
    data = images(120)
    codec.fit(data[:100], data[100:], Stream(0))
    return codec
