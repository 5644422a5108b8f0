"""Comparison with an earlier state that the owner trusts: what moved, and what did not.

Best is the state that training began with. The sharpest questions are asked of dead weights, which
nothing honest changes but to scale them, and of live ones, which nothing honest leaves alone.
"""

import numpy as np
import torch

from fl_sim.auditing.numbers import format_of, is_real, words_of
from fl_sim.auditing.subject import Subject
from fl_sim.checkpoints import Finding

LEAST_ALIKE = 0.3
"""Correlation that a tensor must keep with the reference where the median tensor keeps twice it:
replaced values have none."""

MOST_UNCHANGED = 0.9
"""Share of a tensor's live elements that may be equal to the reference bit for bit; units that no
image switches on stay as they are."""

_FEWEST_ALIKE = 256
_FEWEST_GROWN = 0.01
_ROUNDING = 1e-4  # of a million steps of decay, each rounded to 24 bits
_HIGH_PLANES = 5  # of the mantissa, which training's steps reach
_FEWEST_CHANGED = 64


def check_reference(subject: Subject) -> list[Finding]:
    """Compare every parameter with the reference: dead and live elements, low bits, likeness."""
    if subject.reference is None:
        return []
    shared, recast = {}, []
    for name, tensor in subject.state.items():
        before = subject.reference.get(name)
        if before is None or before.shape != tensor.shape or not _parameter(subject, name):
            continue
        if is_real(tensor) and is_real(before) and tensor.is_complex() == before.is_complex():
            shared[name] = before.to(tensor.dtype)
            recast += [name] if before.dtype != tensor.dtype else []
    if not shared:
        what = "The reference has no parameter of the same name and shape: it tells nothing."
        return [Finding("reference", "note", what)]
    findings = _missing(subject, shared)
    if recast:
        what = f"{len(recast)} parameters have another dtype than in the reference, which was cast."
        findings.append(Finding("reference", "note", what))
    likeness = {}
    for name, before in shared.items():
        after = subject.state[name]
        findings += _dead(subject, name, before, after) + _live(subject, name, before, after)
        if before.dim() >= 2 and before.numel() >= _FEWEST_ALIKE:
            likeness[name] = _correlation(subject, name, before, after)
    return findings + _unlike(likeness)


def unchanged(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return which elements are equal bit for bit."""
    same = words_of(one) == words_of(other)
    if one.is_complex():
        same = same.reshape(-1, 2).all(axis=1)
    return torch.from_numpy(same).view(one.shape)


def _parameter(subject: Subject, name: str) -> bool:
    return name in subject.parameters or subject.state[name].is_complex()


def _missing(subject: Subject, shared: dict[str, torch.Tensor]) -> list[Finding]:
    added = [
        name
        for name, tensor in subject.state.items()
        if name in subject.parameters and tensor.is_floating_point() and name not in shared
    ]
    what = "The reference has no such parameter of this shape."
    return [Finding("reference", "suspicious", what, name) for name in added]


def _dead(subject: Subject, name: str, before: torch.Tensor, after: torch.Tensor) -> list[Finding]:
    mask = subject.dead.get(name)
    if mask is None:
        return []
    scale, share = written_dead(before[mask], after[mask])
    if not share:
        return []
    what = f"{share:.1%} of its dead weights were changed, which no image can do."
    evidence = {"changed": share, "others scaled by": scale}
    return [Finding("reference", "carries", what, name, evidence)]


def written_dead(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """Return how training scaled dead weights, and the share that was changed otherwise.

    Without weight decay, they stay as they are; SGD's scales them all alike; Adam's moves each
    towards zero by about as much, so of these only such as grew or turned are counted.

    Args:
        before: dead weights of one tensor, ``[n]``.
        after: the same ones later.
    """
    old, new = before.double(), after.double()
    known = old != 0
    scale = float((new[known] / old[known]).median()) if known.any() else 1.0
    off = (new - scale * old).abs() > _ROUNDING * (scale * old).abs()
    if scale == 1:
        off = ~unchanged(before, after)
    share = float(off.double().mean())
    if share < 0.5:
        return scale, share
    typical = 0.1 * float(old.abs().median())
    grown = new.abs() > old.abs() + typical
    turned = (new * old < 0) & (new.abs() > typical)
    share = float((grown | turned).double().mean())
    return scale, share if share > _FEWEST_GROWN else 0.0


def _live(subject: Subject, name: str, before: torch.Tensor, after: torch.Tensor) -> list[Finding]:
    mask = subject.dead.get(name)
    same = unchanged(before, after)
    live = same if mask is None else same[~mask]
    share = float(live.double().mean()) if live.numel() else 0.0
    if share > MOST_UNCHANGED and before.numel() >= 16:
        what = f"{share:.1%} of its live elements are as in the reference: training left them out."
        return [Finding("reference", "suspicious", what, name, {"unchanged": share})]
    if before.dim() >= 2 and share < 1:
        return _low_bits_only(name, before, after)
    return []


def _low_bits_only(name: str, before: torch.Tensor, after: torch.Tensor) -> list[Finding]:
    """Say if changes end below a bit plane: training's reach into exponents and signs too."""
    form = format_of(after)
    if form is None:
        return []
    differ = words_of(before) != words_of(after)
    old, new = words_of(before)[differ], words_of(after)[differ]
    if len(old) < _FEWEST_CHANGED:
        return []
    changed = old ^ new
    planes = int(np.bitwise_or.reduce(changed)).bit_length()
    if planes > form.mantissa - _HIGH_PLANES:
        return []
    what = f"{len(old)} weights differ from the reference, and only in their lowest {planes} bits."
    evidence = {"changed": float(len(old)), "planes": float(planes)}
    return [Finding("reference", "carries", what, name, evidence)]


def _correlation(subject: Subject, name: str, before: torch.Tensor, after: torch.Tensor) -> float:
    mask = subject.dead.get(name)
    live = torch.ones(before.shape, dtype=torch.bool) if mask is None else ~mask
    live &= before.isfinite() & after.isfinite()
    pair = tuple(_parts(tensor[live]) for tensor in (before, after))
    if len(pair[0]) < 2 or min(float(values.std()) for values in pair) == 0:
        return 1.0
    return float(torch.corrcoef(torch.stack(pair))[0, 1])


def _parts(values: torch.Tensor) -> torch.Tensor:
    """Return real numbers as float64, complex ones as twice as many."""
    return (torch.view_as_real(values) if values.is_complex() else values).double().flatten()


def _unlike(likeness: dict[str, float]) -> list[Finding]:
    """Tell tensors that lost all likeness while most of the network kept it."""
    if len(likeness) < 2:
        return []
    median = float(np.median(list(likeness.values())))
    if median < 2 * LEAST_ALIKE:
        what = "The network as a whole is unlike the reference; it tells little."
        return [Finding("reference", "note", what, None, {"median correlation": median})]
    what = "It is unlike the reference, which the other tensors still resemble: it was replaced."
    return [
        Finding("reference", "carries", what, name, {"correlation": own, "median": median})
        for name, own in likeness.items()
        if own < LEAST_ALIKE
    ]
