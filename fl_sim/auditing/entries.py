"""Entries of a file against its architecture: what is too much, missing, unused or doubled."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fl_sim.auditing.subject import Subject
from fl_sim.checkpoints import Finding

_FEWEST_EQUAL = 64
_MEAN = 1e4
_BATCHES = 1 << 40


def check_entries(subject: Subject) -> list[Finding]:
    """Report entries that the architecture does not explain.

    Raises:
        Unchecked: if the network is not known.
    """
    subject.known()
    findings = []
    own = subject.own
    for name, tensor in subject.state.items():
        size = tensor.numel() * tensor.element_size()
        if name not in own and _is_count(tensor):
            what = f"The architecture has no such entry: a single count, {int(tensor)}."
            findings.append(Finding("entries", "note", what, name, {"bytes": size}))
        elif name not in own:
            what = f"The architecture has no such entry: {size} bytes of {tensor.dtype}."
            findings.append(Finding("entries", "carries", what, name, {"bytes": size}))
        elif tensor.shape != own[name].shape and name not in subject.layouts:
            what = f"Its shape is {tuple(tensor.shape)}, and the architecture's is "
            what += f"{tuple(own[name].shape)}."
            findings.append(Finding("entries", "suspicious", what, name, {"bytes": size}))
    for name in own:
        if name not in subject.state:
            findings.append(Finding("entries", "note", "The file lacks this entry.", name))
    return findings


def _is_count(tensor: torch.Tensor) -> bool:
    """Whether an entry is one small whole number, as averages of weights keep of their steps."""
    if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_complex():
        return False
    return 0 <= int(tensor) < _BATCHES


def check_unused(subject: Subject) -> list[Finding]:
    """Report parameters that the network has and its output does not depend on.

    Raises:
        Unchecked: if the network is not known or cannot be traced.
    """
    what = "The network's output does not depend on it: a second head, or storage."
    return [
        Finding("unused", "carries", what, name, {"elements": subject.state[name].numel()})
        for name in sorted(subject.unused())
        if name in subject.state
    ]


def check_duplicates(subject: Subject) -> list[Finding]:
    """Report tensors with the same content, other than constant ones."""
    seen: dict[tuple[torch.Size, int], list[tuple[str, torch.Tensor]]] = {}
    findings = []
    for name, tensor in subject.state.items():
        if tensor.numel() < _FEWEST_EQUAL or bool((tensor == tensor.view(-1)[0]).all()):
            continue
        key = (tensor.shape, hash(tuple(tensor.view(-1)[:16].tolist())))
        for other, content in seen.setdefault(key, []):
            if tensor.dtype == content.dtype and torch.equal(tensor, content):
                what = (
                    f"It is equal to {other}: shared in the network, stored twice, or trained by "
                    f"the same gradients, as biases are whose outputs are added."
                )
                findings.append(Finding("duplicates", "note", what, name))
                break
        seen[key].append((name, tensor))
    return findings


def check_buffers(subject: Subject) -> list[Finding]:
    """Report batch-norm statistics that no images give, and other buffers that are not as built.

    Raises:
        Unchecked: if the network is not known.
    """
    network, _ = subject.known()
    findings: list[Finding] = []
    norms = {n for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    counts: dict[str, int] = {}
    for name, fresh in network.named_buffers():
        tensor = subject.state.get(name)
        if tensor is None or tensor.shape != fresh.shape:
            continue
        owner, _, leaf = name.rpartition(".")
        if owner not in norms:
            if not torch.equal(tensor.to(fresh.dtype), fresh):
                what = "It is a buffer, and not what the network's construction gives."
                findings.append(Finding("buffers", "suspicious", what, name))
        elif leaf == "num_batches_tracked":
            counts[name] = int(tensor)
        elif leaf == "running_var" and not bool((tensor >= 0).all()):
            findings.append(Finding("buffers", "carries", "It holds negative variances.", name))
        elif not bool(tensor.isfinite().all()) or float(tensor.abs().max()) > _MEAN**2:
            what = "It holds statistics that no images give."
            findings.append(Finding("buffers", "carries", what, name))
    if len(set(counts.values())) > 1 or any(not 0 <= c < _BATCHES for c in counts.values()):
        what = "The layers disagree on how many batches they saw, or none can have been so many."
        odd = {name: float(count) for name, count in list(counts.items())[:6]}
        findings.append(Finding("buffers", "suspicious", what, None, odd))
    return findings
