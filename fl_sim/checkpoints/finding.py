"""What a look at a model file finds: one sentence, its gravity, its place and its numbers."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fl_sim.errors import legible

Level = Literal["note", "suspicious", "carries"]
LEVELS: tuple[Level, ...] = ("note", "suspicious", "carries")
"""From what a reader should know, over what needs an explanation, to what has hardly another one
than a payload."""

_LONGEST = 1000


UNSEEN = "bytes not looked into"
"""Evidence of what was counted and explained by its form, and whose content nobody looked at."""


@dataclass(frozen=True)
class Finding:
    """What a check found; its texts are made legible, since names of files and tensors are in them.

    Args:
        check: its name.
        level: see ``LEVELS``.
        what: one sentence.
        tensor: that it is about; ``None`` for the whole file.
        evidence: numbers by name.
    """

    check: str
    level: Level
    what: str
    tensor: str | None = None
    evidence: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", legible(self.what, _LONGEST))
        if self.tensor is not None:
            object.__setattr__(self, "tensor", legible(self.tensor))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not finite is ``None``."""
        values = asdict(self)
        values["evidence"] = {k: v if math.isfinite(v) else None for k, v in self.evidence.items()}
        return values
