"""HiFiC's encoder, generator and hyperprior.

Mentzer, Toderici, Tschannen and Agustsson, "High-Fidelity Generative Image Compression", NeurIPS
2020, figure 2 and appendix A. All convolutions pad with zeros, so that latents of any size pass.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional

IMAGE_CHANNELS = 3
BASE_FILTERS = 60
LEVELS = 4
"""Stride-2 steps: an element of the latents stands for 2^4 = 16 pixels along a side."""


class ChannelNorm(nn.Module):
    """Normalise each position over its channels, then scale and shift each channel.

    HiFiC's equation 10; unlike instance or batch normalisation it does not depend on the size of
    the image nor on other images.

    Args:
        channels: of the input ``[n, channels, height, width]``.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised input, in its shape."""
        # One fused kernel, twice as fast on a CPU as means and squares written out.
        last = functional.layer_norm(
            x.permute(0, 2, 3, 1), (self.channels,), self.weight, self.bias, self.eps
        )
        return last.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with ChannelNorm, and a skip over both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            ChannelNorm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            ChannelNorm(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input and what the block adds to it."""
        return cast(torch.Tensor, x + self.body(x))


class Trunk(nn.Module):
    """The generator's residual blocks, and a skip over all of them."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input and what the blocks add to it."""
        return cast(torch.Tensor, x + self.blocks(x))


class HyperSynthesis(nn.Module):
    """Hyperlatents to the scales and means of the latents, by two networks of one shape.

    Args:
        latent: channels of the latents.
        hyper: channels of the hyperlatents.
    """

    def __init__(self, latent: int, hyper: int) -> None:
        super().__init__()
        self.scales = _hyper_synthesis(latent, hyper)
        self.means = _hyper_synthesis(latent, hyper)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return scales, then means, along the channels: ``[n, 2 latent, 4 height, 4 width]``."""
        return torch.cat([self.scales(z), self.means(z)], dim=1)


def filters(width: float) -> list[int]:
    """Return the channels of the encoder's five levels: 60, 120, 240, 480, 960 at width 1."""
    base = max(4, round(BASE_FILTERS * width))
    return [base * 2**level for level in range(LEVELS + 1)]


def encoder(latent: int, width: float) -> nn.Sequential:
    """Build E: images ``[n, 3, h, w]`` to latents ``[n, latent, h / 16, w / 16]``.

    Args:
        latent: channels of the latents.
        width: factor on the number of filters.
    """
    levels = filters(width)
    first = nn.Conv2d(IMAGE_CHANNELS, levels[0], 7, padding=3)
    # ChannelNorm takes the length from what the first layer sees of a flat region, and leaves its
    # direction. Without biases of the images' own size all flat regions look alike, black or white,
    # and training on smooth images stays at their mean for hundreds of steps.
    nn.init.uniform_(cast(nn.Parameter, first.bias), -1.0, 1.0)
    layers: list[nn.Module] = [first, ChannelNorm(levels[0]), nn.ReLU()]
    for wide, wider in pairwise(levels):
        layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), ChannelNorm(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(levels[-1], latent, 3, padding=1))


def generator(latent: int, width: float, residual_blocks: int) -> nn.Sequential:
    """Build the decoder: D with nine residual blocks, the DEC paper's reduced D1 with none.

    Args:
        latent: channels of the latents.
        width: factor on the number of filters.
        residual_blocks: at the latents' resolution.
    """
    levels = filters(width)[::-1]
    layers: list[nn.Module] = [
        ChannelNorm(latent),
        nn.Conv2d(latent, levels[0], 3, padding=1),
        ChannelNorm(levels[0]),
    ]
    if residual_blocks:
        layers.append(Trunk(levels[0], residual_blocks))
    for wide, narrow in pairwise(levels):
        up = nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1)
        layers += [up, ChannelNorm(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(levels[-1], IMAGE_CHANNELS, 7, padding=3))


def hyper_analysis(latent: int, hyper: int) -> nn.Sequential:
    """Build the hyper-encoder: latents to hyperlatents ``[n, hyper, height / 4, width / 4]``."""
    return nn.Sequential(
        nn.Conv2d(latent, hyper, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hyper, hyper, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(hyper, hyper, 5, stride=2, padding=2),
    )


class HificNetwork(nn.Module):
    """All that leaves or stays of HiFiC but the discriminator, with CompressAI's entropy models.

    Args:
        latent: channels of the latents ``y``.
        hyper: channels of the hyperlatents ``z``.
        width: factor on the filters of encoder and generator.
        residual_blocks: of the generator.
    """

    def __init__(self, latent: int, hyper: int, width: float, residual_blocks: int) -> None:
        # Takes many seconds to import.
        from compressai.entropy_models import EntropyBottleneck, GaussianConditional
        from compressai.models.base import get_scale_table

        super().__init__()
        self.g_a = encoder(latent, width)
        self.g_s = generator(latent, width, residual_blocks)
        self.h_a = hyper_analysis(latent, hyper)
        self.h_s = HyperSynthesis(latent, hyper)
        self.entropy_bottleneck = EntropyBottleneck(hyper)
        self.gaussian_conditional = GaussianConditional(get_scale_table().tolist())


def _hyper_synthesis(latent: int, hyper: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(hyper, hyper, 5, stride=2, padding=2, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(hyper, hyper, 5, stride=2, padding=2, output_padding=1),
        nn.ReLU(),
        nn.Conv2d(hyper, latent, 3, padding=1),
    )
