"""Random bits in the lowest mantissa bits of every number.

The random bit substitution of Dubin, "Disarming Steganography Attacks Inside Neural Network
Models", arXiv 2309.03071. It stops payloads in those bits, at next to no cost, and no other.
"""

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import float_entries, perturbing
from fl_sim.settings import Settings

# Of each format: bits of the mantissa, and the integer of its size.
_FORMATS = {
    torch.float64: (52, torch.int64),
    torch.float32: (23, torch.int32),
    torch.float16: (10, torch.int16),
    torch.bfloat16: (7, torch.int16),
}


class RandomBitsSettings(Settings):
    """Settings of random bit substitution.

    Args:
        bits: lowest mantissa bits that are replaced; in formats with fewer, all of them.
    """

    bits: int = Field(16, ge=0, le=52)


@DEFENSES.register("random_bits", "random lowest mantissa bits of every number (Dubin 2023)")
class RandomBits(Defense[RandomBitsSettings]):
    """Replace the lowest bits of every float parameter, buffer and further entry by random ones."""

    Settings = RandomBitsSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        tensors = {**release.model.state_dict(), **float_entries(release)}
        with perturbing(release) as report:
            for name, tensor in tensors.items():
                if tensor.dtype in _FORMATS:
                    generator = release.stream.at(name).torch_generator("random bits")
                    tensor.copy_(with_random_bits(tensor, self.settings.bits, generator))
        return report


def with_random_bits(tensor: torch.Tensor, bits: int, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor whose lowest mantissa bits are random.

    Args:
        tensor: float64, float32, float16 or bfloat16, of any shape.
        bits: how many; at most all that the format has.
        generator: on the CPU.

    Returns:
        The tensor, with signs and exponents as they were; infinities and NaN stay what they are.
    """
    mantissa, integer = _FORMATS[tensor.dtype]
    top = 1 << min(bits, mantissa)
    drawn = torch.randint(top, tensor.shape, generator=generator, dtype=integer)
    kept = tensor.contiguous().view(integer) & -top
    changed = (kept | drawn.to(tensor.device)).view(tensor.dtype)
    return torch.where(tensor.isfinite(), changed, tensor)
