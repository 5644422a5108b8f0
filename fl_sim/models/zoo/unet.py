"""U-Net (Ronneberger et al. 2015) for segmentation, MONAI's, with residual units."""

from typing import Self

from pydantic import Field, model_validator
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.settings import Settings, parse


class UnetSettings(Settings):
    """Settings of the U-Net.

    Args:
        channels: of each level, from the finest to the coarsest; each level after the first halves
            the image.
        residual_units: convolutions of each level within a residual connection; 0 for one plain
            convolution a level.
    """

    channels: tuple[int, ...] = Field((16, 32, 64, 128), min_length=2, max_length=8)
    residual_units: int = Field(2, ge=0, le=8)

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if min(self.channels) < 1:
            raise ValueError(f"'channels' has {min(self.channels)}, but a level needs at least 1.")
        return self


def build(spec: ModelSpec) -> nn.Module:
    """Build a 2-D U-Net with instance normalisation and PReLU.

    Raises:
        FlSimError: if the image cannot be halved as often as there are levels.
    """
    settings = parse(UnetSettings, spec.settings, "The model 'unet'")
    halvings = len(settings.channels) - 1
    step = 2**halvings
    # Instance normalisation needs more than one pixel at the coarsest level.
    if spec.size % step or spec.size < 2 * step:
        raise FlSimError(
            f"The model 'unet' with {halvings + 1} levels needs images whose side is a multiple of "
            f"{step} from {2 * step} on, and these have {spec.size} pixels; choose a dataset size "
            f"such as {max(2, round(spec.size / step)) * step}."
        )
    # Takes seconds to import, and only a process with a U-Net needs it.
    from monai.networks.nets.unet import UNet

    network: nn.Module = UNet(
        spatial_dims=2,
        in_channels=spec.channels,
        out_channels=spec.classes,
        channels=settings.channels,
        strides=(2,) * halvings,
        num_res_units=settings.residual_units,
    )
    return network


MODELS.register("unet", "MONAI's U-Net for segmentation, 0.4 million parameters with 4 levels")(
    ModelEntry(build, settings=UnetSettings, tasks=("segmentation",))
)
