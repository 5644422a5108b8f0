"""What defences that change tensors without training share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import relative_change
from fl_sim.models.graph import Layer


@contextmanager
def changing(release: Release) -> Iterator[DefenseReport]:
    """Watch what is done to the release within the block, for its report.

    Yields:
        The report. After the block it has the seconds and every parameter's relative change.
    """
    began = time.perf_counter()
    before = {name: p.detach().clone() for name, p in release.model.named_parameters()}
    report = DefenseReport()
    yield report
    layers = [Layer(name, (name,)) for name in before]
    report.relative_change = relative_change(release.model, before, layers)
    report.seconds = time.perf_counter() - began


@contextmanager
def perturbing(release: Release) -> Iterator[DefenseReport]:
    """Do as :func:`changing`, with gradients off."""
    with changing(release) as report, torch.no_grad():
        yield report


def draw_anew(tensor: torch.Tensor, mask: torch.Tensor, generator: torch.Generator) -> None:
    """Give elements of a tensor fresh normal values, in place, of the others' deviation.

    Args:
        tensor: of floats.
        mask: which elements, a boolean tensor of its shape. Where the others are fewer than two,
            or not finite, the elements become zero.
        generator: on the CPU.
    """
    others = tensor.detach().cpu()[~mask].double()
    usable = others.numel() > 1 and bool(others.isfinite().all())
    deviation = float(others.std()) if usable else 0.0
    fresh = torch.randn(int(mask.sum()), generator=generator) * deviation
    tensor[mask.to(tensor.device)] = fresh.to(tensor.device, tensor.dtype)


def float_entries(release: Release) -> dict[str, torch.Tensor]:
    """Return the floating-point entries of the model file that the network does not have."""
    return {n: entry for n, entry in release.entries.items() if entry.is_floating_point()}


def weights(release: Release) -> dict[str, torch.Tensor]:
    """Return the network's parameters of two or more dimensions: no biases, no normalisation."""
    return {name: p for name, p in release.model.named_parameters() if p.dim() > 1}
