"""Quantisation: numbers rounded to a few levels, as for integer inference, and turned back.

Affine quantisation of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018. The levels leave no room for payloads in low bits.
"""

from typing import Literal

import torch
from pydantic import Field

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.ledger import REFUSAL, entry_bits, tensor_bits
from fl_sim.defenses.loops.perturb import float_entries, perturbing
from fl_sim.settings import Settings


class QuantizationSettings(Settings):
    """Settings of quantisation.

    Args:
        bits: of an integer; there are two to that power levels.
        per: one scale for each ``"tensor"``, or one for each output ``"channel"`` of tensors of two
            or more dimensions (others have one for the tensor).
        symmetric: levels symmetric around zero, one fewer; otherwise from the smallest value to the
            largest, with zero among them.
    """

    bits: int = Field(8, ge=2, le=16)
    per: Literal["tensor", "channel"] = "channel"
    symmetric: bool = True


@DEFENSES.register("quantization", "parameters rounded to 8 bits and turned back")
class Quantization(Defense[QuantizationSettings]):
    """Quantise and dequantise every parameter and every further float entry.

    Running statistics are left as they are: rounded to zero, a variance would divide by nothing.
    """

    Settings = QuantizationSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        with perturbing(release) as report:
            tensors = dict(release.model.named_parameters()) | float_entries(release)
            for tensor in tensors.values():
                if tensor.numel():
                    tensor.copy_(quantized(tensor, self.settings))
            report.cap_bits = self._cap_bits(release, tensors)
        return report

    def _cap_bits(self, release: Release, tensors: dict[str, torch.Tensor]) -> float:
        """Return the bits of levels, scales and zeros, and of all that is left as it is."""
        left = {n: b for n, b in release.model.named_buffers() if n not in tensors}
        rounded = {n: e for n, e in release.entries.items() if n in tensors}
        names = entry_bits(release.entries) - tensor_bits(rounded)
        levels = sum(
            self.settings.bits * t.numel() + 64 * _rows(t, self.settings) for t in tensors.values()
        )
        return REFUSAL + tensor_bits(left) + names + levels


def _rows(tensor: torch.Tensor, settings: QuantizationSettings) -> int:
    """Return how many scales, and zeros, a tensor is rounded with; each is a float of 32 bits."""
    return len(tensor) if settings.per == "channel" and tensor.dim() > 1 else 1


def quantized(tensor: torch.Tensor, settings: QuantizationSettings) -> torch.Tensor:
    """Return a tensor of floats rounded to the levels that the settings allow, as floats."""
    rows = tensor.reshape(_rows(tensor, settings), -1).float()
    if settings.symmetric:
        highest = 2 ** (settings.bits - 1) - 1
        lowest, zero = -highest, torch.zeros(len(rows), 1, device=rows.device)
        scale = rows.abs().amax(dim=1, keepdim=True) / highest
    else:
        lowest, highest = 0, 2**settings.bits - 1
        smallest = rows.amin(dim=1, keepdim=True).clamp(max=0)
        scale = (rows.amax(dim=1, keepdim=True).clamp(min=0) - smallest) / highest
    scale = torch.where(scale > 0, scale, 1.0)  # nothing but zeros
    if not settings.symmetric:
        zero = (-smallest / scale).round()
    levels = (rows / scale + zero).round().clamp(lowest, highest)
    return ((levels - zero) * scale).reshape(tensor.shape).to(tensor.dtype)
