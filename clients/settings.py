"""What a hospital is told before training: the case, its share of it, and whether it is malicious.

It travels as JSON inside each message, so a hospital needs no file and no closure; it says nothing
of defences or measurements.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fl_sim.auditing.report import Outcome
from fl_sim.case import CaseSettings
from fl_sim.component import Component
from fl_sim.data.partitions import MOST_HOSPITALS, PartitionSettings
from fl_sim.defenses.base import DEFENSES, refuse_sealing
from fl_sim.errors import FlSimError
from fl_sim.settings import Settings
from fl_sim.training import TrainingSettings

MOST_ROUNDS = 100_000


def _cleaning(value: object) -> Component | None:
    if value in (None, "none"):
        return None
    choice = Component.of(value, "[federation] door clean").checked(
        DEFENSES, "[federation] door clean"
    )
    defense = choice.build(DEFENSES, "[federation] door clean")
    refuse_sealing(defense, choice.name, "a hospital's door")
    if defense.needs_uploads:
        raise FlSimError(
            f"The defence '{choice.name}' learns from several hospitals' uploads, and a door sees "
            f"one; take consistent_distillation."
        )
    return choice


class DoorSettings(Settings):
    """What a hospital does with an upload before it leaves, outside of the training code.

    Entries that nobody asked for never leave; an upload that lacks one, or has one of another shape
    or type or with values that such an entry cannot have, is withheld.

    Args:
        clip: L2 norm that the update is scaled down to; not at all where not given.
        clean: a registered defence and its settings, applied to the upload on the hospital's own
            images; ``"none"`` for none.
        audit: whether what would leave is audited, against the broadcast.
        refuse: the mildest outcome of the audit with which an upload is withheld:
            ``"unchecked"``, ``"suspicious"`` or ``"carries"``.
    """

    clip: float | None = Field(None, gt=0)
    clean: Annotated[Component | None, BeforeValidator(_cleaning)] = None
    audit: bool = True
    refuse: Outcome = "suspicious"


class Together(Settings):
    """What a scenario says of its hospitals, and what they are told, alike.

    Args:
        partition: how they share the training images.
        boost: factor on a malicious hospital's update, ``broadcast + boost * (trained -
            broadcast)`` (model replacement, Bagdasaryan et al. 2020).
        update_norm: L2 norm that a malicious update is scaled down to, after boosting, so that it
            passes norm clipping or lies no further out than others; ``"honest"`` for the norm of
            the update that the hospital would have sent honestly (it trains twice). The payload is
            written afterwards, so the norm can end a little higher.
        collusion: whether malicious hospitals work for one receiver. ``"none"``: each steals and
            writes for itself, and may overwrite another's payload. ``"repeat"``: all send the first
            one's images, which they were given outside, at the same places, so that their shares
            of the average add up. ``"split"``: each sends its own images, at places of its own.
        door: what every hospital does with an upload before it leaves; ``None`` for nothing.
    """

    partition: PartitionSettings = PartitionSettings()
    boost: float = Field(1.0, gt=0)
    update_norm: Annotated[float, Field(gt=0)] | Literal["honest"] | None = None
    collusion: Literal["none", "repeat", "split"] = "none"
    door: DoorSettings | None = None


class HospitalSettings(Together):
    """A federation as its hospitals see it; also what :class:`Together` says.

    Args:
        case: data and network.
        hospitals: how many hospitals share the training images.
        rounds: rounds of the whole run; attacks follow their schedules over them.
        training: local training in each round.
        attack: what malicious hospitals do; ``None`` for nothing.
        malicious: numbers of the malicious hospitals, from 0.
        malicious_rounds: rounds, from 1, in which they attack; ``None`` for all. In other rounds
            they train honestly.
        data_root: folder of data files, on the machine where the hospital runs.
        plugins: modules to import first, for components from outside this project.
    """

    case: CaseSettings
    hospitals: int = Field(ge=1, le=MOST_HOSPITALS)
    rounds: int = Field(ge=1, le=MOST_ROUNDS)
    training: TrainingSettings = TrainingSettings()
    attack: Component | None = None
    malicious: tuple[int, ...] = ()
    malicious_rounds: tuple[int, ...] | None = None
    data_root: str | None = None
    plugins: tuple[str, ...] = ()

    def planner(self, hospital: int) -> int:
        """Return the hospital whose images a malicious hospital sends."""
        return self.malicious[0] if self.collusion == "repeat" else hospital

    def attacks_in(self, hospital: int, server_round: int) -> bool:
        """Whether this hospital attacks in this round."""
        return (
            self.attack is not None
            and hospital in self.malicious
            and (self.malicious_rounds is None or server_round in self.malicious_rounds)
        )
