"""What an audit found, and its verdict."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fl_sim.auditing.blind import BLIND
from fl_sim.checkpoints import LEVELS, Finding, Level
from fl_sim.errors import legible

Outcome = Literal["clean", "unchecked", "suspicious", "carries"]
OUTCOMES: tuple[Outcome, ...] = ("clean", "unchecked", "suspicious", "carries")
"""What an audit can end with, from the best to the worst."""


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


@dataclass(repr=False)
class AuditReport:
    """What an audit found.

    Args:
        file: name of the file, or words for a state in memory.
        sha256: of the file; empty for a state in memory.
        format: what the file is, in words.
        architecture: the network in words.
        reference: name of the reference; empty without one.
        ran: names of the checks that ran.
        unchecked: why each of the others could not run, by name.
        findings: the gravest first.
        tensors: a row each.
    """

    file: str
    sha256: str = ""
    format: str = "state dictionary"
    architecture: str = "unknown"
    reference: str = ""
    ran: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    tensors: list[TensorSummary] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The gravest finding's level; without one, whether every check ran."""
        worst = max((LEVELS.index(finding.level) for finding in self.findings), default=0)
        if LEVELS[worst] != "note":
            return LEVELS[worst]  # type: ignore[return-value]
        return "unchecked" if self.unchecked else "clean"

    @property
    def verdict(self) -> str:
        """The outcome in words: ``"clean"`` is said only where every check ran."""
        words = {"clean": "clean", "unchecked": "nothing found", "suspicious": "suspicious"}
        first = words.get(self.outcome, "carries something")
        if not self.unchecked:
            return first
        reasons = "; ".join(dict.fromkeys(self.unchecked.values()))
        count = len(self.unchecked)
        of = f"{count} of {count + len(self.ran)} checks could not run"
        return f"{first}; {of}, because {reasons}"

    def noted(self) -> list[TensorSummary]:
        """Return the tensors that have a finding."""
        return [row for row in self.tensors if row.level is not None]

    def page(self, path: Path | str) -> Path:
        """Write the report as a page that a browser opens without a network. Returns ``path``."""
        from fl_sim.auditing.page import write_page

        return write_page(Path(path), self)

    def __repr__(self) -> str:
        count = len(self.findings)
        return (
            f"<audit of {legible(self.file)}: {self.verdict}; {count} "
            f"finding{'' if count == 1 else 's'}, {len(self.tensors)} tensors>"
        )

    def _repr_html_(self) -> str:
        """Return the page in a frame, as notebooks show it."""
        from html import escape

        from fl_sim.auditing.page import page

        return f'<iframe srcdoc="{escape(page(self))}" width="100%" height="420"></iframe>'

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "format": self.format,
            "architecture": self.architecture,
            "reference": self.reference,
            "outcome": self.outcome,
            "verdict": self.verdict,
            "checks": {"ran": self.ran, "could not run": self.unchecked},
            "findings": [finding.as_dict() for finding in self.findings],
            "tensors": [{**vars(row), "shape": list(row.shape)} for row in self.tensors],
            "limits": BLIND,
        }
