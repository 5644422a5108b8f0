"""What became of a sweep's jobs: a small file each, under ``jobs/``."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fl_sim.files import write_atomically

Kind = Literal["outside", "training", "floor", "upload", "cell"]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        key, kind: of the job.
        wall: seconds from its start to its end.
        cpu: seconds that its process and the children it waited for computed.
        error: what went wrong, in one line; ``None`` if it went well.
    """

    key: str
    kind: Kind
    wall: float
    cpu: float
    error: str | None = None


def note(outcome: Outcome, out: Path) -> None:
    """Write down what became of a job."""
    path = out / "jobs" / f"{outcome.key}.json"
    write_atomically(path, (json.dumps(asdict(outcome)) + "\n").encode())


def noted(keys: Iterable[str], out: Path) -> dict[str, Outcome]:
    """Return what became of jobs, by key, of those that have ended in this or an earlier sweep."""
    read = {key: _read_note(out / "jobs" / f"{key}.json") for key in keys}
    return {key: outcome for key, outcome in read.items() if outcome is not None}


def all_noted(out: Path) -> list[Outcome]:
    """Return what became of the jobs of all sweeps in this folder, by key."""
    read = map(_read_note, sorted((out / "jobs").glob("*.json")))
    return [outcome for outcome in read if outcome is not None]


def _read_note(path: Path) -> Outcome | None:
    """Return what became of a job; of one whose note is damaged, nothing is known."""
    try:
        content = json.loads(path.read_bytes())
        error = content["error"]
        return Outcome(
            key=str(content["key"]),
            kind=content["kind"],
            wall=float(content["wall"]),
            cpu=float(content["cpu"]),
            error=None if error is None else str(error),
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
