"""How networks from elsewhere take pixels: other means and deviations than this project's.

Everything here hands networks pixels in [-1, 1]. One that was trained on others maps them itself,
by a hook before its forward pass, so that neither its names nor its graph change.
"""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fl_sim.errors import FlSimError, shown, unknown_name
from fl_sim.models.base import USUAL, ModelSpec

Numbers = tuple[float, ...]
Normalization = str | None | tuple[float | Numbers, float | Numbers]

NORMALIZATIONS: dict[str, tuple[Numbers, Numbers]] = {
    "symmetric": (USUAL, USUAL),
    "none": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation by name: MedMNIST's [-1, 1], plain [0, 1], torchvision's pretrained ones."""


def normalization(wanted: Normalization, channels: int) -> tuple[Numbers, Numbers]:
    """Return mean and deviation of pixels in [0, 1], a number for each channel or one for all.

    Args:
        wanted: ``"symmetric"`` (pixels in [-1, 1]), ``"none"`` or ``None`` (as they are, in
            [0, 1]), ``"imagenet"``, or a pair of mean and deviation, each a number or one a
            channel. Written as text, ``"0.5,0.25"``.
        channels: of the images.

    Raises:
        FlSimError: if it is nothing of these, or does not fit the channels.
    """
    if isinstance(wanted, str) and "," in wanted:
        wanted = _pair(wanted)
    if wanted is None or isinstance(wanted, str):
        name = "none" if wanted is None else wanted
        if name not in NORMALIZATIONS:
            raise unknown_name("normalization", name, NORMALIZATIONS)
        wanted = NORMALIZATIONS[name]
    if not isinstance(wanted, tuple | list) or len(wanted) != 2:
        raise FlSimError(
            f"normalize is {shown(wanted)}, but it should be a name ({', '.join(NORMALIZATIONS)}) "
            f"or a pair of mean and deviation."
        )
    try:
        mean, std = _numbers(wanted[0]), _numbers(wanted[1])
    except (TypeError, ValueError):
        raise FlSimError(f"normalize holds {shown(wanted)}, which are not numbers.") from None
    for numbers in (mean, std):
        if len(numbers) not in (1, channels):
            raise FlSimError(
                f"normalize has {len(numbers)} numbers where images have {channels} channels; "
                f"give one, or one a channel."
            )
    if min(std) <= 0:
        raise FlSimError(f"normalize divides by {min(std):g}; a deviation is above 0.")
    return mean, std


def take_pixels(network: nn.Module, spec: ModelSpec) -> RemovableHandle | None:
    """Let a network that takes other pixels be called with pixels in [-1, 1].

    Returns:
        What removes that again; ``None`` where there is nothing to map.
    """
    if (spec.mean, spec.std) == (USUAL, USUAL):
        return None
    return network.register_forward_pre_hook(_FromSymmetric(spec.mean, spec.std))


class _FromSymmetric:
    """Maps pixels in [-1, 1] to ``((x + 1) / 2 - mean) / std``."""

    def __init__(self, mean: Numbers, std: Numbers) -> None:
        self._mean = torch.tensor(mean)[:, None, None]
        self._std = torch.tensor(std)[:, None, None]

    def __call__(
        self, network: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        pixels, *rest = inputs
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return (((pixels + 1) / 2 - mean) / std, *rest)


def _numbers(value: object) -> Numbers:
    if isinstance(value, (int, float)):
        return (float(value),)
    return tuple(float(number) for number in value)  # type: ignore[attr-defined]


def _pair(text: str) -> tuple[float | Numbers, float | Numbers]:
    """Read ``"mean,deviation"``, or six numbers for three channels."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise FlSimError(f"normalize is {shown(text)}, which are not numbers.") from None
    if len(numbers) not in (2, 6):
        raise FlSimError(
            f"normalize has {len(numbers)} numbers; give a mean and a deviation, or three of each."
        )
    half = len(numbers) // 2
    return tuple(numbers[:half]), tuple(numbers[half:])
