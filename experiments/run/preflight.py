"""What is looked at before a run does anything: whether it can end, and what it will leave out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.run.scenario import Scenario
from fl_sim.case import Case
from fl_sim.data import load_dataset
from fl_sim.data.overlap import refuse_attacked
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.rehearsal import SMALLEST
from fl_sim.sealing.ckks import require_tenseal


def check_ready(
    scenario: Scenario, case: Case, data_root: Path | None, progress: Progress = SILENT
) -> None:
    """Refuse a scenario that its data do not suffice for, before anything is trained or written.

    Args:
        scenario: what is to be run.
        case: its data and network.
        data_root: folder of data files, for what the attacker prepares outside.
        progress: told how far a long preparation of data has come.

    Raises:
        FlSimError: naming the key.
    """
    defense = scenario.make_defense()
    if defense is not None and defense.seals:
        require_tenseal()
    attack = scenario.make_attack()
    if attack is None:
        return
    _check_images(scenario, case)
    _check_public(scenario, len(case.public))
    for external in attack.outside_data:
        dataset = load_dataset(external.name, external.settings, data_root, progress)
        refuse_attacked("[attack] external", dataset, case.name, case.train)


def remarks(scenario: Scenario, case: Case) -> list[str]:
    """Return what a person should know before a run begins, a sentence each."""
    task, images = case.task, len(case.train)
    said = [
        f"Task: {task.kind}, {task.outputs} outputs; {images} training images of "
        f"{case.spec.size}x{case.spec.size} pixels ({case.description or case.name})."
    ]
    if case.own_weights is not None:
        said.append(case.own_weights.said)
    said += _of_duplicates(scenario, case)
    if scenario.attack is not None and not len(case.public):
        said.append(
            "No public images: restorations and floors need them and are left out, so what leaked "
            "is that of the raw images."
        )
    return said


def task_record(case: Case) -> dict[str, Any]:
    """Return what ``scenario.json`` says of the task."""
    return {
        "kind": case.task.kind,
        "outputs": case.task.outputs,
        "labels": list(case.task.label_names),
        "description": case.description,
    }


def duplicates_record(scenario: Scenario, case: Case) -> dict[str, Any] | None:
    """Return what ``scenario.json`` says of near-duplicates; ``None`` where none were looked for.

    Returns:
        Counts by pair of uses (``"test near train"``), and ``dropped``, whether they are left out.
    """
    found = None if scenario.data.duplicates == "keep" else case.near_duplicates
    return None if found is None else {**found.counts, "dropped": found.dropped}


def _of_duplicates(scenario: Scenario, case: Case) -> list[str]:
    """Return a sentence on near-duplicates, where there is something to say."""
    if scenario.data.duplicates == "keep":
        return []
    found = case.near_duplicates
    if found is None:
        return [
            "Near-duplicates were not looked for among so many images; [data] duplicates = "
            '"drop" does.'
        ]
    if not any(found.counts.values()):
        return []
    end = "are left out" if found.dropped else 'stay ([data] duplicates = "drop" leaves them out)'
    return [f"Near-duplicate images between uses {end}: {found}."]


def _check_images(scenario: Scenario, case: Case) -> None:
    for where, images in _wanted(scenario):
        if images > len(case.train):
            raise FlSimError(
                f"{where} is {images}, but there are {len(case.train)} training images; lower it."
            )


def _wanted(scenario: Scenario) -> Iterator[tuple[str, int]]:
    """Yield how many images an attack and its parts want, by key."""
    if scenario.attack is None:
        return
    settings = scenario.attack.settings
    parts = {"[attack]": settings}
    for name, part in settings.get("parts", {}).items():
        parts[f"[attack] parts.{name}"] = part["settings"]
    for where, own in parts.items():
        if isinstance(own.get("images"), int):
            yield f"{where} images", own["images"]


def _check_public(scenario: Scenario, public: int) -> None:
    attacker = scenario.attacker
    if attacker.knows_defense and scenario.defense is not None and public < SMALLEST:
        raise FlSimError(
            f"[attacker] knows_defense rehearses on public images, and there are {public}; at "
            f"least {SMALLEST} are needed: [data] public_images asks for them, at most a tenth of "
            f"the training images."
        )
    wants = "search" if attacker.search else ""
    if attacker.restorations not in ("all", ()):
        wants = "restorations"
    if wants and public == 0:
        raise FlSimError(
            f"[attacker] {wants} compares with public images, and there are none: raise [data] "
            f"public_images (at most a tenth of the training images), or leave {wants} out."
        )
