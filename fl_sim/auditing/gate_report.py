"""What the export gate found of a model."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TensorRow:
    """What the gate found of one tensor.

    Args:
        name: in the state dictionary.
        kind: ``"parameter"``, ``"buffer"`` or ``"entry"`` (the network has no such tensor).
        elements: how many it has.
        relative_change: ``||after - before|| / ||before||``; not a number where not applicable.
        unmoved: share of the live elements that stayed equal, bit for bit.
        dead: elements that no image can reach, see :func:`fl_sim.carriers.dead.dead_weights`.
        reasons: why it is refused; empty if it is not.
    """

    name: str
    kind: str
    elements: int
    relative_change: float = math.nan
    unmoved: float = math.nan
    dead: int = 0
    reasons: list[str] = field(default_factory=list)


@dataclass
class GateReport:
    """What the gate found, and whether the model may leave.

    Args:
        declared: the kind of task that was declared.
        defense: what the model was fine-tuned with.
        reasons: why the model as a whole is refused.
        tensors: a row each, in the network's forward order; then buffers and further entries.
        rounds: how often it was fine-tuned.
        loss_before: on the held-out images, as the model came.
        loss_after: as it would leave.
        overwritten: elements that were given fresh values, dead or unmoved ones.
        images: held-out images used.
        left_behind: what was beside the weights in the file that came, and does not leave.
    """

    declared: str
    defense: str
    reasons: list[str] = field(default_factory=list)
    tensors: list[TensorRow] = field(default_factory=list)
    rounds: int = 0
    loss_before: float = math.nan
    loss_after: float = math.nan
    overwritten: int = 0
    images: int = 0
    left_behind: list[str] = field(default_factory=list)

    @property
    def approved(self) -> bool:
        """Whether nothing was refused."""
        return not self.reasons and not any(row.reasons for row in self.tensors)

    def all_reasons(self) -> list[str]:
        """Return the model's reasons, then each tensor's with its name."""
        own = [f"{row.name}: {reason}" for row in self.tensors for reason in row.reasons]
        return self.reasons + own

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not a number is ``None``."""
        values: dict[str, Any] = _plain({"approved": self.approved, **asdict(self)})
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
