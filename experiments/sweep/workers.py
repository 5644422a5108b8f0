"""Where the jobs of a sweep are done: in Ray's worker processes, or one by one in this process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from experiments.sweep.jobs import Job, work
from experiments.sweep.outcomes import Outcome, note
from fl_sim.data.cache import cache_folder
from fl_sim.engine.cluster import ray_running
from fl_sim.errors import FlSimError

RETRIES = 3
"""How often a job is begun again whose process was killed."""
_OBJECT_STORE = 80 << 20
"""Bytes, about Ray's least: jobs hand each other files, not objects."""


class Workers(Protocol):
    """A number of processes that take jobs."""

    slots: int

    def submit(self, job: Job) -> None:
        """Take a job; at most ``slots`` at a time."""

    def wait(self) -> list[Outcome]:
        """Return the outcomes of one job or more that have ended, waiting for the first."""


class Here:
    """Does each job in this process when it is waited for.

    Args:
        out: folder of the sweep.
        data_root: folder of data files.
    """

    slots = 1

    def __init__(self, out: Path, data_root: Path | None) -> None:
        self._where = out, data_root
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._jobs.append(job)

    def wait(self) -> list[Outcome]:
        """Do the job."""
        return [work(self._jobs.pop(0), *self._where)]


class OnRay:
    """Gives jobs to Ray's worker processes, which stay alive between jobs.

    Args:
        out: folder of the sweep, which all workers see under the same path.
        data_root: folder of data files, likewise.
        slots: jobs at a time.
        gpus: of each job, or a fraction.
    """

    def __init__(self, out: Path, data_root: Path | None, slots: int, gpus: float) -> None:
        import ray

        self.slots = slots
        self._out, self._data_root = out, data_root
        self._work = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_work)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Give a job to Ray."""
        self._jobs[self._work.remote(sys.path, job, self._out, self._data_root)] = job

    def wait(self) -> list[Outcome]:
        """Wait for a job; one whose processes were killed again and again has failed."""
        import ray

        done, _ = ray.wait(list(self._jobs), num_returns=1)
        outcomes = []
        for reference in done:
            job = self._jobs.pop(reference)
            try:
                outcomes.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                why = f"Its process was killed {RETRIES + 1} times ({type(error).__name__})."
                outcomes.append(Outcome(job.key, job.kind, 0.0, 0.0, why))
                note(outcomes[-1], self._out)
        return outcomes


def _work(search: list[str], job: Job, out: Path, data_root: Path | None) -> Outcome:
    """Do a job where modules, such as plugins, are found as in the process that asks for it."""
    sys.path.extend(folder for folder in search if folder not in sys.path)
    return work(job, out, data_root)


@contextmanager
def ray_workers(
    out: Path,
    data_root: Path | None,
    workers: int | None = None,
    address: str | None = None,
    gpus: float = 0.0,
) -> Iterator[OnRay]:
    """Start Ray on this machine, or join a cluster, for the enclosed block.

    Where this process has joined a Ray already, that is used, and goes on.

    Args:
        out, data_root: see :class:`OnRay`.
        workers: jobs at a time; by default one for each core.
        address: of a running cluster, for example ``"auto"`` or ``"ray://head:10001"``.
        gpus: of each job, or a fraction.

    Raises:
        FlSimError: if Ray cannot be started or joined, or has no room for one job.
    """
    arguments: dict[str, Any] = {}
    if address is None:
        arguments = {"num_cpus": workers or cores(), "object_store_memory": _OBJECT_STORE}
        if gpus == 0:
            arguments["num_gpus"] = 0
    # Float sums depend on the number of threads, whatever the user's own setting is.
    variables = {"OMP_NUM_THREADS": "1", "FL_SIM_CACHE": str(cache_folder())}
    with ray_running(address, variables, **arguments):
        yield OnRay(out, data_root, _slots(workers, gpus), gpus)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _slots(workers: int | None, gpus: float) -> int:
    import ray

    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0))
    if gpus > 0:
        room = min(room, int(resources.get("GPU", 0) / gpus))
    if room < 1:
        what = f"a core and {gpus:g} GPUs" if gpus else "a core"
        raise FlSimError(f"Ray has no room for one cell, which needs {what}.")
    return min(workers, room) if workers else room
