"""The dtypes of a state's entries, against the architecture's and against each other's."""

from collections import Counter, defaultdict

import torch

from fl_sim.auditing.numbers import format_of
from fl_sim.auditing.subject import COUNTED, Subject
from fl_sim.checkpoints import Finding, Level

_BYTES = (torch.int8, torch.uint8, torch.qint8, torch.quint8)
_NAMED = 5


def check_dtypes(subject: Subject) -> list[Finding]:
    """Report entries of another dtype than the architecture has there, one finding for each kind.

    A whole network may be kept narrower or wider, and its norms wider than the rest, so these are
    noted; a few entries wider than all others have room that the others lack. Without an
    architecture only floating-point entries are compared, with the commonest dtype.
    """
    state = subject.state
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    usual = counts.most_common(1)[0][0] if counts else torch.float32
    odd: dict[tuple[torch.dtype, torch.dtype], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        expected = subject.own[name].dtype if name in subject.own else None
        if name.endswith(COUNTED) and tensor.dim() == 0 and tensor.is_floating_point():
            continue  # a federation's average of counts
        if expected is not None and expected != tensor.dtype:
            odd[tensor.dtype, expected].append(name)
        elif expected is None and format_of(tensor) is not None and tensor.dtype != usual:
            odd[tensor.dtype, usual].append(name)
    findings = []
    for (dtype, expected), names in odd.items():
        size = sum(state[name].numel() * state[name].element_size() for name in names)
        named = ", ".join(name[:60] for name in names[:_NAMED])
        named += ", ..." if len(names) > _NAMED else ""
        what = f"{len(names)} entries are {_words(dtype)} where {_words(expected)} is usual: "
        level = _level(dtype, expected, usual) if names[0] in subject.own or counts else "note"
        only = names[0] if len(names) == 1 else None
        findings.append(Finding("dtypes", level, what + named + ".", only, {"bytes": float(size)}))
    return findings


def _level(dtype: torch.dtype, expected: torch.dtype, usual: torch.dtype) -> Level:
    if dtype in _BYTES and expected.is_floating_point:
        return "note"  # quantised weights, which are audited as such
    if dtype.is_floating_point != expected.is_floating_point or dtype.is_complex:
        return "suspicious"
    wider = dtype.is_floating_point and torch.finfo(dtype).bits > torch.finfo(usual).bits
    if wider and torch.finfo(dtype).bits > 32:
        return "suspicious"
    return "note"


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
