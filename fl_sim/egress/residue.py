"""What remains after a decision: risks that no criterion takes away, and what nobody looked at."""

from collections.abc import Iterable, Iterator, Mapping

from fl_sim.auditing.report import AuditReport
from fl_sim.egress.decision import Criterion
from fl_sim.egress.policy import Policy, not_asked
from fl_sim.egress.record import Control, DefenseSummary, ModelThatCame

CONTROLS = (
    Control(what="the training code and the file that came", by="whoever trained the model"),
    Control(what="training, held-out and test images", by="the data owner"),
    Control(what="the policy, its thresholds and its exceptions", by="the data owner"),
    Control(what="audit, defence, rehearsals and measurements", by="the data owner's machine"),
    Control(what="seed and randomness of the defence", by="the data owner, kept from receivers"),
    Control(what="the decision to send the folder", by="a person, after this record"),
    Control(what="use of the model after it has left", by="the receiver; no technical control"),
)
"""Controls, and who controls each of them."""

_SEAL = (
    "The record and the checksums are bound to each other and not to a person: without a "
    "signature, or the record's hash from the owner, somebody who rewrites all of them is not "
    "noticed."
)


def residual_risks(
    policy: Policy, came: ModelThatCame, defense: DefenseSummary | None, *, sealed: bool
) -> Iterator[str]:
    """Yield the risks that remain whatever was measured, in plain words.

    Args:
        policy: of the owner.
        came: what the file that came is.
        defense: what was done.
        sealed: whether a part of the model leaves encrypted.
    """
    yield (
        "A clean audit says that nothing was found. Encrypted or well compressed bits that look "
        "like trained weights pass it, and so do images that training itself memorised."
    )
    if policy.rehearsal is not None:
        yield (
            "Rehearsed attacks are known ones, played with the settings of the policy; an attack "
            "that nobody has published is not among them."
        )
    if defense is not None and policy.cap is None:
        size = f"{defense.cap_bytes:,.0f}" if defense.cap_bytes is not None else "all"
        yield (
            f"The policy sets no cap. By the bound that holds for every attacker, up to {size} "
            f"bytes can have passed from the model that came into what leaves."
        )
    elif defense is not None:
        yield (
            f"Up to {defense.cap_bytes or 0:,.0f} bytes can have passed from the model that came. "
            f"So few bytes can still name a patient or a diagnosis."
        )
    if came.told_by == "file":
        yield (
            "The network was told by the file that came. How its layers are built was chosen by "
            "whoever made it, and that choice leaves, too; it is not counted in the cap."
        )
    if policy.judged_by == "value":
        yield "Figures were judged by themselves and not by the worse end of their intervals."
    if sealed:
        yield (
            "A part of the model is encrypted. Decisions that its owner hands out tell something "
            "of it, and the clear part is as good as its origin."
        )
    yield "One run with one seed: another seed of the defence gives somewhat other figures."
    yield _SEAL


def not_checked(
    policy: Policy, criteria: Iterable[Criterion], audits: Mapping[str, AuditReport]
) -> Iterator[str]:
    """Yield what was not looked at, in plain words.

    Args:
        policy: of the owner.
        criteria: as judged.
        audits: of the file that came and of what leaves.
    """
    for what in not_asked(policy):
        yield f"{what}: the policy does not ask for it"
    for criterion in criteria:
        if criterion.status in ("not run", "excepted"):
            yield f"{criterion.name}: {criterion.reason}"
    places = {"came": "of the file that came", "leaves": "of what leaves"}
    for place, report in audits.items():
        for name in report.unchecked:
            yield f"the audit's check '{name}' {places[place]} could not run"
    yield "the training code itself, and the images that it saw"
    yield "attributes of patients that answers may tell (attribute inference)"
    yield "agreements, people and settings: those are the organisation's to check"
