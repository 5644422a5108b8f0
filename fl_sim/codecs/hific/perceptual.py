"""LPIPS, HiFiC's perceptual distance, where its network's weights are at hand."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from fl_sim.errors import FlSimError

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
"""What torchvision calls the weights of AlexNet."""


class Perceptual(nn.Module):
    """Zhang et al. 2018 (arXiv 1801.03924) on AlexNet, as torchmetrics has it, differentiable.

    Raises:
        FlSimError: if AlexNet's weights are not on disk; nothing is downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
        if not path.is_file():
            raise FlSimError(
                f"perceptual_weight asks for LPIPS, which needs torchvision's AlexNet weights: "
                f"put {ALEXNET_FILE} as torchvision publishes it into {path.parent}, or set "
                f"perceptual_weight to 0."
            )
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.net = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.eval()

    def forward(self, images: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of two batches ``[n, 1 or 3, height, width]`` in [0, 1]."""
        pair = (batch.expand(-1, 3, -1, -1) for batch in (images, decoded))
        distances = self.net(*pair, normalize=True)
        return cast(torch.Tensor, distances.mean())
