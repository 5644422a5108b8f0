"""A run's recovered images as a report shows them, from a file that may hold anything."""

import math
from pathlib import Path

import torch

from fl_sim.artifact import read_safetensors
from fl_sim.errors import FlSimError, printable

_SSIM = "/ssim"
_ORIGINAL = "original"


def read_pictures(folder: Path) -> dict[str, torch.Tensor]:
    """Return a run's images, as :func:`experiments.run.folder.load_pictures` does, checked.

    Returns:
        Float images ``[n, channels, height, width]`` of one shape by ``"<stage>/<extraction>"``,
        and ``"original"``; under ``".../ssim"`` an SSIM for each. Empty where there are none.

    Raises:
        FlSimError: if the file is damaged, or an entry is no such thing.
    """
    path = folder / "images" / "recovered.safetensors"
    if not path.exists():
        return {}
    tensors, _ = read_safetensors(path, "file of recovered images")
    original = tensors.get(_ORIGINAL)
    if original is None:
        return {}
    shape = original.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape[1:]:
        raise _damaged(path, _ORIGINAL, original)
    for name, tensor in tensors.items():
        wanted = shape[:1] if name.endswith(_SSIM) else shape
        if tensor.shape != wanted or not tensor.dtype.is_floating_point:
            raise _damaged(path, name, tensor)
    for name in list(tensors):
        if name != _ORIGINAL and not name.endswith(_SSIM):
            tensors.setdefault(f"{name}{_SSIM}", torch.full(shape[:1], math.nan))
    return {name: tensor.float() for name, tensor in tensors.items()} if len(original) else {}


def _damaged(path: Path, name: str, tensor: torch.Tensor) -> FlSimError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return FlSimError(
        f"The recovered images {printable(str(path))} are damaged: '{printable(name)[:80]}' is "
        f"{kind} {list(tensor.shape)}."
    )
