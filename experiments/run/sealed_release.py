"""A release that leaves sealed: the files for its receiver, and the key for its owner."""

from experiments.run.owner import State
from experiments.run.running import Run
from fl_sim.defenses.base import DefenseReport
from fl_sim.sealing.files import remove_sealed, write_sealed

RECEIVER, OWNER = "sealed", "owner"
"""Folders of a run: what leaves, and what must not."""


def seal_release(
    run: Run, server_round: int, released: State, report: DefenseReport | None
) -> None:
    """Encrypt what a defence wants sealed, where it wants anything, and say how large that is.

    Beside it ``artifacts/release.safetensors`` is what a receiver can read, for extractors; the
    rest of a run's folder is its owner's.

    Args:
        run: the run.
        server_round: from 1; 0 in centralized mode.
        released: the owner's model.
        report: of the defence, if any.
    """
    if report is None or report.sealed is None:
        return
    artifact, owner = run.out / RECEIVER, run.out / OWNER
    remove_sealed(artifact, owner)
    case = run.case
    files = write_sealed(artifact, owner, case.spec, released, report.sealed, case.task)
    run.folder.record_values(server_round, "release", sealed_bytes=float(sum(files.bytes.values())))
