"""Vision transformer (Dosovitskiy et al. 2021), torchvision's, sized as in Transpose's paper."""

from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.models.transposed_vit import TransposedVisionTransformer

WIDTH, MLP_WIDTH, BLOCKS, HEADS = 384, 1152, 7, 12


def patch_size(size: int) -> int:
    """Return the patch side that divides ``size`` into a grid nearest to 8 x 8.

    Raises:
        FlSimError: if the size is a prime, or otherwise has no grid of 4 to 16 patches a side.
    """
    grids = [grid for grid in range(4, 17) if size % grid == 0]
    if not grids:
        raise FlSimError(
            f"The model 'vit' cannot cut images of {size} pixels into 4 to 16 equal patches a "
            f"side; choose a dataset size such as {max(8, size // 8 * 8)}."
        )
    return size // min(grids, key=lambda grid: abs(grid - 8))


def build(spec: ModelSpec) -> nn.Module:
    """Build a transformer of 7 blocks, width 384, 12 heads, on about 8 x 8 patches."""
    from torchvision.models import VisionTransformer

    patch = patch_size(spec.size)
    network = VisionTransformer(
        image_size=spec.size,
        patch_size=patch,
        num_layers=BLOCKS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=MLP_WIDTH,
        num_classes=spec.classes,
    )
    if spec.channels != 3:
        network.conv_proj = nn.Conv2d(spec.channels, WIDTH, patch, stride=patch)
    # torchvision starts the head at zero, which leaves a transposed pass without any signal.
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)
    return network


MODELS.register(
    "vit", "torchvision's vision transformer, 7 blocks of width 384, 10.5 M parameters"
)(ModelEntry(build, transposed=TransposedVisionTransformer))
