"""What a defence changed in the weights: elements left as they were, signs, and each bit plane."""

from dataclasses import dataclass

import torch

MANTISSA_BITS = 23
_SIGN_BIT = 31


@dataclass(frozen=True)
class WeightChange:
    """What became of a group of float32 weights.

    Args:
        elements: how many there are.
        unchanged: share that is the same in every bit.
        sign_errors: share whose sign differs.
        bit_errors: share in which a bit differs, by bit plane, from the lowest of the mantissa (0)
            to its highest (22).
    """

    elements: int
    unchanged: float
    sign_errors: float
    bit_errors: tuple[float, ...]


def weight_change(before: list[torch.Tensor], after: list[torch.Tensor]) -> WeightChange:
    """Compare weights bit by bit.

    Args:
        before: float32 tensors.
        after: tensors of the same shapes.

    Raises:
        ValueError: if there are no elements, or shapes or types differ.
    """
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape or {old.dtype, new.dtype} != {torch.float32}:
            raise ValueError("Only float32 tensors of the same shapes can be compared by bits.")
    if sum(tensor.numel() for tensor in before) == 0:
        raise ValueError("There are no weights to compare.")
    first = torch.cat([tensor.detach().cpu().flatten() for tensor in before])
    second = torch.cat([tensor.detach().cpu().flatten() for tensor in after])
    differs = first.view(torch.int32) ^ second.view(torch.int32)

    def share(bit: int) -> float:
        return float(((differs >> bit) & 1).double().mean())

    return WeightChange(
        elements=len(first),
        unchanged=float((differs == 0).double().mean()),
        sign_errors=share(_SIGN_BIT),
        bit_errors=tuple(share(bit) for bit in range(MANTISSA_BITS)),
    )
