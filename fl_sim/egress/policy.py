"""The policy of a data owner: what a model has to meet before it leaves, in terms people can judge.

A policy is a TOML file. Each thing that it asks for becomes a :class:`Limit`; what it does not ask
for is said beside every decision. A limit whose figure could not be measured refuses, unless the
policy names it among its exceptions, with a reason.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fl_sim.attacks.base import ATTACKS
from fl_sim.component import Component
from fl_sim.defenses.base import DEFENSES
from fl_sim.errors import FlSimError, did_you_mean, printable, unknown_name
from fl_sim.settings import MOST_EPOCHS, Settings, parse

SHIPPED = Path(__file__).parent / "policies"
LONGEST = 1 << 16
"""Bytes of a policy file at most."""

Gravity = Literal["clean", "suspicious", "carries"]
GRAVITIES: tuple[Gravity, ...] = ("clean", "suspicious", "carries")
"""What an audit finds at worst; its findings of the level ``note`` are no findings here."""
Of = Literal["training", "held_out"]


def _component(what: str) -> Any:
    return BeforeValidator(lambda value: Component.of(value, what))


class AuditLimits(Settings):
    """What the audits may find.

    Args:
        came: the gravest finding in the file that came that is still accepted: ``"clean"`` (none),
            ``"suspicious"`` or ``"carries"``.
        leaves: likewise in the file that leaves.
        unchecked: checks of the audit that may have failed to run, in each of the two.
    """

    came: Gravity = "clean"
    leaves: Gravity = "clean"
    unchecked: int = Field(0, ge=0)


class CapLimits(Settings):
    """How much can have passed from the model that came into what leaves, whoever attacked.

    Args:
        bytes: at most; see :mod:`fl_sim.defenses.ledger`.
    """

    bytes: int = Field(ge=0, le=1 << 50)


class RehearsalLimits(Settings):
    """Attacks that the owner plays himself on the network that came, through the same defence.

    Args:
        attacks: registered attacks, by name or as tables of name and settings.
        images: that each of them steals, unless its table says so.
        epochs: passes over the training images that an attack trains for, from the weights that
            came.
        most_training: training images that it has at most, the first ones.
        above_chance: share of the stolen images, at most, that may be identified in what leaves
            beyond what guessing identifies.
    """

    attacks: tuple[Annotated[Component, _component("[rehearsal] attacks")], ...]
    images: int = Field(32, ge=1, le=1 << 16)
    epochs: float = Field(4.0, gt=0, le=MOST_EPOCHS)
    most_training: int = Field(2048, ge=16)
    above_chance: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.attacks:
            raise ValueError("'attacks' is empty; name one, or leave the table out")
        for attack in self.attacks:
            attack.typed(ATTACKS.get(attack.name).Settings, f"The attack '{attack.name}'")
        return self


class MembershipLimits(Settings):
    """How surely somebody with the model may tell who was in it.

    Args:
        method: the attack: ``"rmia"`` or ``"lira"``.
        references: reference models that it trains, an even number.
        epochs: passes over their images in which each of them is trained.
        of: whose membership is measured: of the ``"training"`` images, and of the ``"held_out"``
            images that a defence learns from. The worse counts.
        tpr_at_0_1_percent: share of members, at most, that is found while one non-member in a
            thousand is taken for one.
        tpr_at_1_percent: likewise at one in a hundred.
    """

    method: Literal["rmia", "lira"] = "rmia"
    references: int = Field(4, ge=2, le=256, multiple_of=2)
    epochs: float = Field(8.0, gt=0, le=MOST_EPOCHS)
    of: tuple[Of, ...] = Field(("training", "held_out"), min_length=1)
    tpr_at_0_1_percent: float = Field(ge=0, le=1)
    tpr_at_1_percent: float = Field(ge=0, le=1)


class UtilityLimits(Settings):
    """What the model has to be worth; AUC, or Dice of a segmentation, on test images.

    Args:
        least: that it has to reach.
        above_own: how much more it has to reach than the same network that the owner trains by
            himself on the held-out images alone. ``None`` measures it and asks nothing.
        lost: most that the defence may take.
        own_epochs: passes over the held-out images in which that network is trained.
    """

    least: float = Field(ge=0, le=1)
    above_own: float | None = Field(None, ge=-1, le=1)
    lost: float = Field(1.0, ge=0, le=1)
    own_epochs: int = Field(20, ge=1, le=MOST_EPOCHS)


class Policy(Settings):
    """What a data owner asks of a model before it leaves.

    Args:
        about: whose policy it is and what for, in a sentence.
        judged_by: ``"interval"``: the worse end of each figure's 95 % interval has to keep the
            limit; ``"value"``: the figure itself.
        defense: the defence, or the export form, that every model passes, with its settings.
        audit: what the audits may find.
        cap: bytes that can have passed; not asked where left out.
        rehearsal: attacks played by the owner; not asked where left out.
        membership: not asked where left out.
        utility: not asked where left out.
        exceptions: criteria that may go unmeasured, by name, each with the reason. What was
            measured and missed still refuses.
    """

    about: str = Field("", max_length=1000)
    judged_by: Literal["interval", "value"] = "interval"
    defense: Annotated[Component, _component("defense")]
    audit: AuditLimits = AuditLimits()
    cap: CapLimits | None = None
    rehearsal: RehearsalLimits | None = None
    membership: MembershipLimits | None = None
    utility: UtilityLimits | None = None
    exceptions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self.defense.typed(DEFENSES.get(self.defense.name).Settings, "The policy's defense")
        known = [limit.name for limit in limits(self)]
        for name, why in self.exceptions.items():
            if name not in known:
                raise ValueError(
                    f"there is no criterion '{printable(name)}' to except."
                    f"{did_you_mean(name, known)}"
                )
            if not why.strip():
                raise ValueError(f"the exception '{name}' has no reason; say why")
        return self


@dataclass(frozen=True)
class Limit:
    """One thing that a policy asks for.

    Args:
        name: of the criterion, as exceptions and records call it.
        question: in words that end with a question mark.
        most: the highest figure that is accepted; ``None`` where there is a least.
        least: the lowest.
        unit: ``"share"``, ``"bytes"``, ``"checks"``, ``"score"`` or ``"gravity"``.
    """

    name: str
    question: str
    most: float | None = None
    least: float | None = None
    unit: str = "share"

    def asked(self) -> str:
        """Return what is asked, in words."""
        if self.unit == "gravity" and self.most == 0:
            return "nothing"
        if self.most is not None:
            return f"at most {worded(self.most, self.unit)}"
        return f"at least {worded(self.least or 0.0, self.unit)}"


def worded(value: float, unit: str) -> str:
    """Return a figure in words, by its unit."""
    if unit == "gravity":
        return ("nothing", "something suspicious", "something hidden")[int(value)]
    if unit in ("bytes", "checks"):
        return f"{value:,.0f} {unit if round(value) != 1 else unit[:-1]}"
    return f"{100 * value:.1f} %" if unit == "share" else f"{value:.3f}"


def limits(policy: Policy) -> Iterator[Limit]:
    """Yield what a policy asks for, in the order in which it is checked."""
    audit = policy.audit
    for place, gravity in (("came", audit.came), ("leaves", audit.leaves)):
        yield Limit(
            f"audit_{place}",
            f"What did the audit find in the file that {place}?",
            most=float(GRAVITIES.index(gravity)),
            unit="gravity",
        )
        yield Limit(
            f"unchecked_{place}",
            f"How many of the audit's checks could not run on the file that {place}?",
            most=float(audit.unchecked),
            unit="checks",
        )
    if policy.cap is not None:
        yield Limit(
            "cap",
            "How much can have passed from the model that came into what leaves, whoever attacked?",
            most=float(policy.cap.bytes),
            unit="bytes",
        )
    if policy.rehearsal is not None:
        for attack in names_of(policy.rehearsal.attacks):
            yield Limit(
                f"rehearsal_{attack}",
                f"How many of the stolen images, beyond guessing, does the attack {attack} get "
                f"through the same defence?",
                most=policy.rehearsal.above_chance,
            )
    yield from _further(policy)


def _further(policy: Policy) -> Iterator[Limit]:
    if policy.membership is not None:
        for rate, most in (
            ("0.1", policy.membership.tpr_at_0_1_percent),
            ("1", policy.membership.tpr_at_1_percent),
        ):
            yield Limit(
                f"membership_{rate.replace('.', '_')}_percent",
                f"How many of those in the model can be told, with {rate} % false alarms?",
                most=most,
            )
    if policy.utility is not None:
        asked = policy.utility
        yield Limit(
            "utility", "What is the model worth as it leaves?", least=asked.least, unit="score"
        )
        if asked.above_own is not None:
            yield Limit(
                "utility_above_own",
                "How much more is it worth than what the owner trains alone on the held-out "
                "images?",
                least=asked.above_own,
                unit="score",
            )
        yield Limit("utility_lost", "How much did the defence take?", most=asked.lost, unit="score")


def names_of(attacks: tuple[Component, ...]) -> list[str]:
    """Return how criteria call rehearsed attacks: by name, and a number from the second on."""
    names: list[str] = []
    for attack in attacks:
        before = sum(name.partition("#")[0] == attack.name for name in names)
        names.append(attack.name if not before else f"{attack.name}#{before + 1}")
    return names


def shipped() -> dict[str, Path]:
    """Return the policies that come along, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def read_policy(policy: "Policy | str | Path") -> tuple[Policy, str, bytes]:
    """Read a policy.

    Args:
        policy: a path, the name of one that comes along, or a policy.

    Returns:
        The policy, how it is called, and its file's content; of a policy in memory, as JSON.

    Raises:
        FlSimError: if it does not exist, is no TOML, or a key is wrong.
    """
    if isinstance(policy, Policy):
        return policy, "given", policy.model_dump_json().encode()
    path = shipped().get(str(policy))
    name = str(policy) if path else "a file of its owner's"
    path = path or Path(policy)
    shown = printable(str(policy))
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise FlSimError(f"The policy {shown} does not exist.")
        raise unknown_name("policy", str(policy), shipped())
    with open(path, "rb") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise FlSimError(f"The policy {shown} is longer than {LONGEST >> 10} KiB.")
    try:
        table = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise FlSimError(f"The policy {shown} is no TOML: {printable(str(error))}.") from None
    return parse(Policy, table, f"The policy {shown}"), name, content


def explained(policy: Policy) -> list[str]:
    """Return a policy in plain sentences."""
    ends = {"interval": "The worse end of each figure's 95 % interval", "value": "Each figure"}
    settings = ", ".join(f"{k} = {v}" for k, v in policy.defense.settings.items())
    said = [policy.about.strip()] if policy.about.strip() else []
    said.append(
        f"Every model passes {policy.defense.name}{f' ({settings})' if settings else ''}. "
        f"{ends[policy.judged_by]} has to keep its limit. What could not be measured refuses."
    )
    said += [
        f"{limit.name}: {limit.question} {limit.asked().capitalize()}." for limit in limits(policy)
    ]
    if policy.rehearsal is not None:
        rehearsal = policy.rehearsal
        said.append(
            f"Rehearsed are {', '.join(names_of(rehearsal.attacks))}, with {rehearsal.images} "
            f"images each, on up to {rehearsal.most_training} training images."
        )
    said += [f"Not asked: {what}." for what in not_asked(policy)]
    said += [
        f"Exception: {name} may go unmeasured, because {why.rstrip('.')}."
        for name, why in policy.exceptions.items()
    ]
    return said


def not_asked(policy: Policy) -> list[str]:
    """Return in words what a policy leaves out."""
    words = {
        "cap": "a cap in bytes on what can have passed from the model that came",
        "rehearsal": "attacks rehearsed by the owner",
        "membership": "who can be told to have been in the model",
        "utility": "what the model is worth",
    }
    return [word for key, word in words.items() if getattr(policy, key) is None]
