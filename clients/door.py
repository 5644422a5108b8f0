"""The hospital's door: what an upload has to pass before it leaves, outside of the training code.

Whoever trains on a hospital's images is a stranger to it, and says what its upload is; the door
looks at what the upload holds. It lets through only what was asked for, keeps the update small if
told to, cleans it if told to, and audits what would leave.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from clients.hospital import LocalResult, hospital_case, hospital_data, limited, update_norm
from clients.settings import DoorSettings, HospitalSettings
from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.auditor import audit
from fl_sim.auditing.report import OUTCOMES
from fl_sim.checkpoints import Checkpoint
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.errors import printable
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.models.entries import entry_problem
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.training import computing_threads

State = dict[str, torch.Tensor]
Clean = Callable[[State, State], State]
"""Cleans what would leave, given what was broadcast; both by the network's names."""

_LONGEST = 300


@dataclass(frozen=True)
class DoorRecord:
    """What the door of a hospital did with an upload. Nothing of it is derived from an image.

    Args:
        action: ``"passed"`` unchanged, ``"changed"``, or ``"withheld"``.
        reason: of a withheld upload, in a sentence; else empty.
        audit: outcome of the audit of what would leave; empty where there was none.
        findings: of the audit, the gravest first, a sentence each.
        dropped: names of entries that nobody asked for.
        norm_before, norm_after: L2 norm of the update as trained, and as it would leave.
        sha256_before, sha256_after: of the entries' bytes; the latter empty where nothing leaves.
        seconds: that the door took.
    """

    action: Literal["passed", "changed", "withheld"]
    reason: str = ""
    audit: str = ""
    findings: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    norm_before: float = 0.0
    norm_after: float = 0.0
    sha256_before: str = ""
    sha256_after: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Passage:
    """What came through a door.

    Args:
        state: what leaves; ``None`` where nothing does.
        record: of the door.
    """

    state: State | None
    record: DoorRecord = field(compare=False)


def pass_door(
    upload: Mapping[str, torch.Tensor],
    broadcast: Mapping[str, torch.Tensor],
    settings: DoorSettings,
    network: ModelSpec | Statement | None = None,
    clean: Clean | None = None,
    progress: Progress = SILENT,
) -> Passage:
    """Check an upload, and change it as the settings say.

    Args:
        upload: what the training code wants to send.
        broadcast: what it was sent.
        settings: of the door.
        network: that the entries are of, as far as it is known.
        clean: applies ``settings.clean``.
        progress: where to report.

    Raises:
        FlSimError: if the cleaning cannot be done; then nothing may leave.
    """
    began = time.perf_counter()
    record = DoorRecord("withheld", sha256_before=digest(upload))
    dropped = tuple(printable(name)[:_LONGEST] for name in upload if name not in broadcast)
    record = replace(record, dropped=dropped)
    problem = _unlike(upload, broadcast)
    if problem:
        return _withheld(record, f"the upload's {problem}", began)
    state = {name: upload[name].clone() for name in broadcast}
    record = replace(record, norm_before=update_norm(state, broadcast))
    if settings.clip is not None:
        state = limited(state, broadcast, settings.clip)
    if clean is not None:
        state = clean(state, dict(broadcast))
    record = replace(record, norm_after=update_norm(state, broadcast))
    if settings.audit:
        report = audit(Checkpoint(state=dict(state)), network, dict(broadcast), progress)
        found = tuple(str(f.what)[:_LONGEST] for f in report.findings if f.level != "note")
        record = replace(record, audit=report.outcome, findings=found)
        if OUTCOMES.index(report.outcome) >= OUTCOMES.index(settings.refuse):
            return _withheld(record, f"the audit says: {report.verdict}", began)
    after = digest(state)
    changed = dropped or after != record.sha256_before
    return Passage(
        state,
        replace(
            record,
            action="changed" if changed else "passed",
            sha256_after=after,
            seconds=time.perf_counter() - began,
        ),
    )


def hospital_door(
    settings: HospitalSettings,
    hospital: int,
    server_round: int,
    result: LocalResult,
    broadcast: Mapping[str, torch.Tensor],
) -> Passage:
    """Pass a hospital's upload through its door; see :func:`pass_door`.

    What cleans is given the hospital's own images as held-out ones, and the broadcast as the model
    that is known to be clean. A pure function of its arguments, as training is.

    Raises:
        FlSimError: if there is no door, or the cleaning cannot be done.
    """
    door = settings.door
    assert door is not None
    case = hospital_case(settings)
    with computing_threads(1):

        def clean(state: State, reference: State) -> State:
            assert door is not None and door.clean is not None
            model = build(case.spec)
            model.load_state_dict(state)
            release = Release(
                model=model,
                spec=case.spec,
                held_out=hospital_data(settings, hospital),
                task=case.task,
                stream=Stream(settings.case.seed, ("door", hospital, server_round)),
                reference=reference,
            )
            door.clean.build(DEFENSES, "[federation] door clean").apply(release)
            return state_of(model)

        cleaning = None if door.clean is None else clean
        return pass_door(result.state, broadcast, door, case.spec, cleaning)


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a state's names, dtypes, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def door_metrics(record: DoorRecord) -> dict[str, float]:
    """Return what a table says of a passage, by metric."""
    return {
        "withheld": float(record.action == "withheld"),
        "seconds": record.seconds,
        "update_norm": record.norm_after,
    }


def _unlike(upload: Mapping[str, torch.Tensor], broadcast: Mapping[str, torch.Tensor]) -> str:
    missing = next((name for name in broadcast if name not in upload), None)
    if missing is not None:
        return f"tensor '{missing}' is missing"
    problems = (entry_problem(name, upload[name], value) for name, value in broadcast.items())
    return next((problem for problem in problems if problem), "")


def _withheld(record: DoorRecord, reason: str, began: float) -> Passage:
    return Passage(None, replace(record, reason=reason, seconds=time.perf_counter() - began))


def plain(record: DoorRecord) -> dict[str, Any]:
    """Return a record as JSON has it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(record).items()
    }
