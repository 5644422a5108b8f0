"""The audit of a checkpoint: every check, and a verdict with its evidence."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.bits import check_bits
from fl_sim.auditing.content import check_content
from fl_sim.auditing.dead import check_dead
from fl_sim.auditing.dtypes import check_dtypes
from fl_sim.auditing.entries import check_buffers, check_duplicates, check_entries, check_unused
from fl_sim.auditing.identified import Identified, identified
from fl_sim.auditing.integers import check_integers
from fl_sim.auditing.probes import check_memory_backdoor, check_transpose
from fl_sim.auditing.reference import check_reference, unchanged
from fl_sim.auditing.report import AuditReport, TensorSummary
from fl_sim.auditing.special import check_special
from fl_sim.auditing.subject import Subject, Unchecked
from fl_sim.auditing.values import check_values
from fl_sim.checkpoints import LEVELS, UNSEEN, Checkpoint, Finding, read_checkpoint
from fl_sim.files import checksum
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress, piece

State = dict[str, torch.Tensor]
Check = Callable[[Subject], list[Finding]]
VALUES: dict[str, Check] = {
    "content": check_content,
    "bits": check_bits,
    "values": check_values,
    "integers": check_integers,
    "special values": check_special,
}
"""Checks of values, which need no network, so that further copies of the weights have them too."""

CHECKS: dict[str, Check] = {
    "entries": check_entries,
    "unused": check_unused,
    "duplicates": check_duplicates,
    "buffers": check_buffers,
    "dtypes": check_dtypes,
    **VALUES,
    "dead weights": check_dead,
    "transpose probe": check_transpose,
    "memory backdoor probe": check_memory_backdoor,
}
"""Every check by its name; with a reference one more. One that cannot run raises ``Unchecked``."""


def audit_file(
    path: Path,
    network: ModelSpec | Statement | None = None,
    reference: Path | None = None,
    progress: Progress = SILENT,
) -> AuditReport:
    """Audit a checkpoint file, or a folder of shards; nothing in it is run.

    Args:
        path: safetensors, torch's .pt and .pth, TorchScript, .npz, a pickle; told by content.
        network: what the user knows of the architecture; else it is the file's own word, or what
            explains the file.
        reference: a checkpoint of an earlier state.
        progress: where to report.

    Raises:
        FlSimError: if a file cannot be read, or a stated network does not exist.
    """
    checkpoint = read_checkpoint(path)
    earlier = None if reference is None else read_checkpoint(reference)
    report = audit(checkpoint, network, None if earlier is None else earlier.state, progress)
    report.file = path.name
    report.sha256 = checksum(path) if path.is_file() else ""
    report.reference = "" if reference is None else reference.name
    return report


def audit(
    checkpoint: Checkpoint,
    network: ModelSpec | Statement | None = None,
    reference: State | None = None,
    progress: Progress = SILENT,
) -> AuditReport:
    """Audit a state dictionary; see :func:`audit_file`."""
    with piece(progress, "audit", len(CHECKS) + (reference is not None)):
        known = identified(checkpoint, network)
        report = AuditReport(
            "state dictionary", format=checkpoint.format, architecture=known.words, ran=["file"]
        )
        report.findings += [*checkpoint.findings, *known.findings]
        subject = known.subject(checkpoint, reference)
        checks = CHECKS if reference is None else {**CHECKS, "reference": check_reference}
        for name, run in checks.items():
            try:
                report.findings += map(known.shown, run(subject))
                report.ran.append(name)
            except Unchecked as reason:
                report.unchecked[name] = str(reason)
            progress.step(name)
    # The reader has looked at positions of sparse values: they are in order, or a finding.
    parts = {n: t for n, t in checkpoint.parts.items() if not n.endswith("indices")}
    beside = {"mask": known.masks, "part": parts}
    unseen = int(sum(f.evidence.get(UNSEEN, 0) for f in checkpoint.findings))
    if unseen:
        report.unchecked["beside the weights"] = (
            f"{unseen} bytes beside the weights were not looked into (save the weights alone)"
        )
    for what, copy in {**checkpoint.copies, **beside}.items():
        report.findings += _of_copy(what, copy)
    report.findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    report.tensors = _summaries(subject, known, report.findings)
    return report


def _of_copy(what: str, copy: State) -> list[Finding]:
    """Look at the values of a further copy of the weights."""
    findings: list[Finding] = []
    for run in VALUES.values():
        with suppress(Unchecked):
            findings += run(Subject(copy))
    return [replace(f, tensor=f"{what}: {f.tensor or 'all'}") for f in findings]


def _summaries(subject: Subject, known: Identified, findings: list[Finding]) -> list[TensorSummary]:
    levels: dict[str, int] = defaultdict(lambda: -1)
    for finding in findings:
        if finding.tensor is not None:
            level = LEVELS.index(finding.level)
            levels[finding.tensor] = max(levels[finding.tensor], level)
    rows = []
    for name, tensor in subject.state.items():
        wide = tensor.is_floating_point() and tensor.numel() > 1
        deviation = float(tensor.double().std()) if wide else 0.0
        shown = str(known.name_in_file(name))
        row = TensorSummary(shown, tuple(tensor.shape), str(tensor.dtype)[6:], deviation)
        row.dead = int(subject.dead[name].sum()) if name in subject.dead else 0
        earlier = (subject.reference or {}).get(name)
        if (
            earlier is not None
            and tensor.is_floating_point()
            and (earlier.shape, earlier.dtype) == (tensor.shape, tensor.dtype)
        ):
            row.unchanged = float(unchanged(earlier, tensor).double().mean())
        row.level = LEVELS[levels[shown]] if levels[shown] >= 0 else None
        rows.append(row)
    return rows
