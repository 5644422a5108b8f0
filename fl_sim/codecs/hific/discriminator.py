"""HiFiC's conditional patch discriminator; it stays inside and never leaves with the codec."""

from typing import cast

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fl_sim.codecs.hific.networks import IMAGE_CHANNELS, LEVELS

CONTEXT_CHANNELS = 12
BASE_FILTERS = 64
_SLOPE = 0.2


class Discriminator(nn.Module):
    """Tells patches of images from patches of their reconstructions, given the latents of both.

    Mentzer et al. 2020, figure 2: latents to 12 channels, upsampled 16 times to the nearest
    neighbour, beside the image; spectral norm on every convolution (Miyato et al. 2018).

    Args:
        latent: channels of the latents.
        width: factor on the number of filters, 64 in the first layer at width 1.
    """

    def __init__(self, latent: int, width: float) -> None:
        super().__init__()
        base = max(8, round(BASE_FILTERS * width))
        self.context = nn.Sequential(
            spectral_norm(nn.Conv2d(latent, CONTEXT_CHANNELS, 3, padding=1)),
            nn.LeakyReLU(_SLOPE),
            nn.Upsample(scale_factor=2**LEVELS, mode="nearest"),
        )
        layers: list[nn.Module] = []
        channels = IMAGE_CHANNELS + CONTEXT_CHANNELS
        for growth in (1, 2, 4):
            convolution = nn.Conv2d(channels, base * growth, 4, stride=2, padding=1)
            layers += [spectral_norm(convolution), nn.LeakyReLU(_SLOPE)]
            channels = base * growth
        layers += [
            nn.ZeroPad2d((1, 2, 1, 2)),  # one more after than before: still a logit an 8x8 block
            spectral_norm(nn.Conv2d(channels, base * 8, 4)),
            nn.LeakyReLU(_SLOPE),
            spectral_norm(nn.Conv2d(base * 8, 1, 1)),
        ]
        self.patches = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return a logit for each 8x8 block of the images; high means real.

        Args:
            images: ``[n, 3, height, width]``, sides that are multiples of 16.
            latents: ``[n, latent, height / 16, width / 16]``.
        """
        beside = torch.cat([images, self.context(latents)], dim=1)
        return cast(torch.Tensor, self.patches(beside))
