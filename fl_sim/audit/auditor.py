"""The audit of a checkpoint: every check, and a verdict with its evidence."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_sim.audit.architecture import guess
from fl_sim.audit.bits import check_bits
from fl_sim.audit.content import check_content
from fl_sim.audit.dead import check_dead
from fl_sim.audit.entries import check_buffers, check_duplicates, check_entries
from fl_sim.audit.probes import check_memory_backdoor, check_transpose
from fl_sim.audit.reference import check_reference, unchanged
from fl_sim.audit.subject import Subject
from fl_sim.audit.values import check_values
from fl_sim.checkpoints import LEVELS, Checkpoint, Finding, Level, read_checkpoint
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.models import check
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress, piece

Check = Callable[[Subject], list[Finding]]
CHECKS: tuple[Check, ...] = (
    check_entries,
    check_duplicates,
    check_buffers,
    check_content,
    check_bits,
    check_values,
    check_dead,
    check_reference,
    check_transpose,
    check_memory_backdoor,
)
VERDICTS = {"note": "clean", "suspicious": "suspicious", "carries": "carries something"}
BLIND = (
    "Clean means that nothing was found, not that nothing is there. Bits that are encrypted or "
    "well compressed and written into low planes, keyed lattices and spread patterns look like "
    "trained weights to every test here; so do values that training itself put there. Against "
    "these only cleaning helps: fl-sim gate."
)
"""What a reader of every report has to know."""


@dataclass
class TensorSummary:
    """A row of the report's table.

    Args:
        name: in the state dictionary.
        shape: of the tensor.
        dtype: of the tensor.
        deviation: of its elements; 0 for what has none.
        dead: elements that no image can reach, where that is known.
        unchanged: share of elements equal to the reference bit for bit; ``None`` without one.
        level: of its gravest finding; empty if there is none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    deviation: float
    dead: int = 0
    unchanged: float | None = None
    level: Level | None = None


@dataclass
class AuditReport:
    """What an audit found.

    Args:
        file: name of the file, or words for a state in memory.
        sha256: of the file; empty for a state in memory.
        architecture: the network in words.
        reference: name of the reference; empty without one.
        findings: the gravest first.
        tensors: a row each.
    """

    file: str
    sha256: str = ""
    architecture: str = "unknown"
    reference: str = ""
    findings: list[Finding] = field(default_factory=list)
    tensors: list[TensorSummary] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``"clean"``, ``"suspicious"`` or ``"carries something"``: the gravest finding's."""
        worst = max((LEVELS.index(finding.level) for finding in self.findings), default=0)
        return VERDICTS[LEVELS[worst]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "architecture": self.architecture,
            "reference": self.reference,
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
            "tensors": [{**vars(row), "shape": list(row.shape)} for row in self.tensors],
            "limits": BLIND,
        }


def audit_file(
    path: Path,
    spec: ModelSpec | None = None,
    reference: Path | None = None,
    progress: Progress = SILENT,
) -> AuditReport:
    """Audit a checkpoint file.

    Args:
        path: .safetensors, .pt or .pth.
        spec: the architecture, where the user knows it; else the file's own word or a guess.
        reference: a checkpoint of an earlier state.
        progress: where to report.

    Raises:
        FlSimError: if a file cannot be read, would run code, or ``spec`` cannot be built.
    """
    checkpoint = read_checkpoint(path)
    earlier = None if reference is None else read_checkpoint(reference)
    report = audit(checkpoint, spec, None if earlier is None else earlier.state, progress)
    report.file, report.sha256 = path.name, checksum(path)
    report.reference = "" if reference is None else reference.name
    return report


def audit(
    checkpoint: Checkpoint,
    spec: ModelSpec | None = None,
    reference: dict[str, Any] | None = None,
    progress: Progress = SILENT,
) -> AuditReport:
    """Audit a state dictionary; see :func:`audit_file`."""
    subject, words = _subject(checkpoint, spec, reference)
    report = AuditReport("state dictionary", architecture=words)
    report.findings += checkpoint.findings
    with piece(progress, "audit", len(CHECKS)):
        for run in CHECKS:
            report.findings += run(subject)
            progress.step(run.__name__.removeprefix("check_").replace("_", " "))
    report.findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    report.tensors = _summaries(subject, report.findings)
    return report


def _subject(
    checkpoint: Checkpoint, spec: ModelSpec | None, reference: dict[str, Any] | None
) -> tuple[Subject, str]:
    state = checkpoint.state
    spec = spec or checkpoint.spec
    if spec is not None:
        check(spec)
        told = "as given" if checkpoint.spec is not spec else "as the file states"
        return Subject(state, spec, True, reference), f"{_words(spec)}, {told}"
    found = guess(state)
    if found is None:
        return Subject(state, None, False, reference), "unknown"
    words = f"{_words(found.spec)}, guessed: {found.share:.0%} of its entries are there"
    if not found.size_known:
        words += "; the image size cannot be told, give --size"
    return Subject(state, found.spec, found.size_known, reference), words


def _words(spec: ModelSpec) -> str:
    size = f"{spec.channels} x {spec.size} x {spec.size}"
    return f"{spec.name}, {spec.classes} outputs, images {size}, stem {spec.stem}"


def _summaries(subject: Subject, findings: list[Finding]) -> list[TensorSummary]:
    levels: dict[str, int] = defaultdict(lambda: -1)
    for finding in findings:
        if finding.tensor is not None:
            level = LEVELS.index(finding.level)
            levels[finding.tensor] = max(levels[finding.tensor], level)
    rows = []
    for name, tensor in subject.state.items():
        wide = tensor.is_floating_point() and tensor.numel() > 1
        deviation = float(tensor.double().std()) if wide else 0.0
        row = TensorSummary(name, tuple(tensor.shape), str(tensor.dtype)[6:], deviation)
        row.dead = int(subject.dead[name].sum()) if name in subject.dead else 0
        earlier = (subject.reference or {}).get(name)
        if (
            earlier is not None
            and tensor.is_floating_point()
            and (earlier.shape, earlier.dtype) == (tensor.shape, tensor.dtype)
        ):
            row.unchanged = float(unchanged(earlier, tensor).double().mean())
        row.level = LEVELS[levels[name]] if levels[name] >= 0 else None
        rows.append(row)
    return rows


def spec_from(
    model: str, classes: int, channels: int, size: int, stem: str = "default"
) -> ModelSpec:
    """Return the specification of a registered network.

    Raises:
        FlSimError: if it cannot be built.
    """
    from fl_sim.models.base import MODELS

    tasks = MODELS.get(model).tasks
    if stem not in ("default", "small"):
        raise FlSimError(f"There is no stem '{stem}'. Valid names: default, small.")
    spec = ModelSpec(
        name=model, channels=channels, size=size, classes=classes,
        stem=stem, task=tasks[0],
    )  # fmt: skip
    check(spec)
    return spec
