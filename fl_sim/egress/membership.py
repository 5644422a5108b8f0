"""Who can be told to have been in the model: the one place that asks for membership inference."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_sim.artifact import write_artifact
from fl_sim.data.base import Dataset, Split
from fl_sim.egress.decision import UNTOLD, Figure
from fl_sim.egress.policy import MembershipLimits
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.progress import Progress
from fl_sim.verbs.inferring import membership

CRITERIA = {0.001: "membership_0_1_percent", 0.01: "membership_1_percent"}
"""Criteria by the rate of false alarms."""


@dataclass
class Membership:
    """What membership inference found.

    Args:
        figures: of the criteria; of several groups the worst.
        told: plain numbers by group, for the record.
        groups: the findings themselves, with their records by image; they stay with the owner.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)


def measured_membership(
    asked: MembershipLimits,
    spec: ModelSpec,
    state: dict[str, Any],
    data: Dataset,
    held_out: Split,
    folder: Path,
    troubles: dict[str, str],
    progress: Progress,
) -> Membership:
    """Measure membership of a model that would leave; what cannot run gives figures that refuse.

    Args:
        asked: of the policy.
        spec: the network.
        state: the model; of a sealed one its owner's, which tells more than what leaves.
        data: the owner's; its test images are in no model.
        held_out: what the defence learned from.
        folder: for a model file in passing; not one that leaves.
        troubles: filled with why it could not run; for the owner.
        progress: where to report.
    """
    found = Membership()
    images = {"training": data.train, "held_out": held_out}
    try:
        path = write_artifact(folder / "of-membership.safetensors", spec, state)
        for group in asked.of:
            further = [other for name, other in images.items() if name != group]
            found.groups[group] = membership(
                path,
                images[group],
                data.test,
                method=asked.method,
                references=asked.references,
                training={"epochs": asked.epochs},
                further=further[0],
                normalize=(spec.mean, spec.std),
                progress=progress,
            )
            found.told[group] = found.groups[group].as_dict()
    except FlSimError as error:
        troubles["membership"] = str(error)
        found.figures = {name: Figure(why=UNTOLD) for name in CRITERIA.values()}
        return found
    for rate, name in CRITERIA.items():
        found.figures[name] = max(
            (_figure(one, rate) for one in found.groups.values()), key=lambda one: one.value or 0.0
        )
    return found


def _figure(found: Any, rate: float) -> Figure:
    low, high = found.tpr_interval(rate)
    return Figure(float(found.tpr(rate)), float(low), float(high))
