"""What an entry of a state dictionary may hold, whoever made it."""

from collections.abc import Mapping

import torch

from fl_sim.errors import FlSimError

MOST_BATCHES = 1 << 40
"""What a count of batches is below: a batch in a microsecond for twelve days."""


def is_variance(name: str) -> bool:
    """Whether an entry is batch normalisation's running variance, by torch's name for it."""
    return _leaf(name) == "running_var"


def is_counter(name: str) -> bool:
    """Whether an entry counts batch normalisation's batches, by torch's name for it."""
    return _leaf(name) == "num_batches_tracked"


def entry_problem(name: str, tensor: torch.Tensor, reference: torch.Tensor) -> str | None:
    """Say what is wrong with an entry that should be like ``reference`` and usable, if anything."""
    if tensor.shape != reference.shape:
        return f"tensor '{name}' has shape {tuple(tensor.shape)}, not {tuple(reference.shape)}"
    if tensor.dtype != reference.dtype:
        return f"tensor '{name}' is {tensor.dtype}, not {reference.dtype}"
    return value_problem(name, tensor)


def value_problem(name: str, tensor: torch.Tensor) -> str | None:
    """Say what is wrong with an entry's values, if anything.

    They are finite, no running variance is negative, and a count of batches is from 0 to below
    :data:`MOST_BATCHES`.
    """
    if not bool(torch.isfinite(tensor).all()):
        return f"tensor '{name}' has values that are NaN or infinite"
    if is_variance(name) and bool((tensor < 0).any()):
        return f"tensor '{name}' has negative variances, down to {float(tensor.min()):g}"
    if is_counter(name) and not bool(((tensor >= 0) & (tensor < MOST_BATCHES)).all()):
        return f"tensor '{name}' counts {tensor.flatten()[0].item()} batches"
    return None


def require_sound(release: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> None:
    """Refuse a release with an entry that a defence has broken.

    Args:
        release: as the defence left it.
        before: as it came; what was wrong with it already is not the defence's.

    Raises:
        FlSimError: naming the first such entry.
    """
    for name in (name for name in release if name in before):
        problem = value_problem(name, release[name])
        if problem and not value_problem(name, before[name]):
            raise FlSimError(f"The release's {problem}.")


def cast_like(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give a value its entry's shape and dtype; integers are rounded and kept in range."""
    value = value.reshape(reference.shape)
    if value.dtype == reference.dtype:
        return value.clone()
    if reference.is_floating_point():
        return value.to(reference.dtype)
    rounded = value.double().round()
    if reference.dtype == torch.bool:
        return rounded > 0
    limits = torch.iinfo(reference.dtype)
    # float64 cannot hold the largest int64, so that end is cut by hand.
    cut = rounded.clamp(float(limits.min), float(limits.max))
    whole = torch.where(cut >= float(limits.max), 0.0, cut).to(reference.dtype)
    return torch.where(cut >= float(limits.max), limits.max, whole).to(reference.dtype)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
