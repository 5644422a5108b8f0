"""The transposed pass of a vision transformer, which its traced graph does not give.

As the released code of the Transpose paper does it: the code goes through the head's weights, the
same final LayerNorm, is added to the position embedding of every patch, passes encoder blocks in
their *forward* direction, and each token becomes a patch through the patch embedding's weights.
The released code runs the last block only (a slice that keeps one block). The full variant runs all
blocks, last to first, and normalises tokens before they become patches, as the passes of other
networks do: without that, images start far outside [0, 1] and eight of them are not learned in 120
steps; with it, they reach SSIM 0.9 in 300.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Signal = torch.Tensor


class TransposedVisionTransformer:
    """Runs torchvision's ``VisionTransformer`` backwards, from a code to an image.

    Args:
        model: the network.
        as_released: run the last encoder block only.
    """

    def __init__(self, model: nn.Module, as_released: bool = False) -> None:
        network: Any = model
        blocks = list(network.encoder.layers)
        self._blocks = blocks[-1:] if as_released else blocks[::-1]
        self._network = network
        self._normalise = not as_released
        self._grid = network.image_size // network.patch_size

    def __call__(self, codes: Signal) -> Signal:
        """Map codes ``[n, outputs]`` to images ``[n, channels, height, width]``, unclamped."""
        network = self._network
        hidden = network.encoder.ln(codes @ network.heads.head.weight)
        tokens = hidden.unsqueeze(1) + network.encoder.pos_embedding[:, 1:]
        for block in self._blocks:
            tokens = block(tokens)
        if self._normalise:
            width = tokens.shape[-1:]
            tokens = functional.layer_norm(tokens, width) / math.sqrt(width.numel())
        features = tokens.transpose(1, 2).unflatten(2, (self._grid, self._grid))
        return functional.conv_transpose2d(
            features, network.conv_proj.weight, stride=network.patch_size
        )
