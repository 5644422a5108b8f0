"""What planning a sweep costs, by its cells: expanding the grid, planning jobs, scheduling them.

Run ``python -m experiments.benchmarks.planning``; it prints a Markdown table. Cells are those of a
product of attacks, defences of several settings, training lengths and seeds; no job is worked on, a
crew of four hands every job back as done at once. *Step* is all that the schedule does from one
outcome to the next; *longest* is the mean of the slowest hundredth. CPU time of one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweep.grid import Grid
from experiments.sweep.jobs import Job, plan_jobs
from experiments.sweep.outcomes import Outcome
from experiments.sweep.schedule import Schedule
from fl_sim.progress import SILENT


def grid_of(cells: int) -> dict[str, Any]:
    """Return a grid of about as many cells: 2 lengths, 4 attacks, 5 defences, and seeds."""
    return {
        "base": "demo-centralized",
        "seeds": list(range(-(-cells // 40))),
        "grid": {
            "training.epochs": [1, 2],
            "attack": ["none", *({"name": "transpose", "images": n} for n in (8, 16, 32))],
            "defense": [
                "none",
                "lwlrd",
                *({"name": "gaussian_noise", "sigma": s} for s in (0.001, 0.01, 0.1)),
            ],
        },
    }


class Instant:
    """A crew that hands every job back at once, and notes the time between.

    Args:
        slots: jobs at a time.
    """

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.steps: list[float] = []
        self._jobs: list[Job] = []
        self._left = 0.0

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._jobs.append(job)

    def wait(self) -> list[Outcome]:
        """Hand back the oldest."""
        if self._left:
            self.steps.append(time.thread_time() - self._left)
        job = self._jobs.pop(0)
        seconds = 1.0 + len(job.key) % 3 + job.scenario.seed % 5
        self._left = time.thread_time()
        return [Outcome(job.key, job.kind, seconds, seconds)]


def measure(cells: int) -> str:
    """Plan and schedule a sweep, and return its row of the table."""
    began = time.thread_time()
    grid = Grid.from_mapping(grid_of(cells))
    expanded = time.thread_time()
    with tempfile.TemporaryDirectory() as folder:
        jobs = plan_jobs(grid, Path(folder), None)
        planned = time.thread_time()
        schedule = Schedule(jobs, Path(folder))
        scheduled = time.thread_time()
    crew = Instant()
    schedule.work_off(crew, SILENT)
    worst = sorted(crew.steps)[-max(1, len(crew.steps) // 100) :]
    seconds = (expanded - began, planned - expanded, scheduled - planned)
    steps = (1e3 * statistics.mean(crew.steps), 1e3 * statistics.mean(worst))
    told = [str(len(grid.cells)), str(len(jobs)), *(f"{s:.2f}" for s in seconds)]
    return f"| {' | '.join([*told, *(f'{s:.3f}' for s in steps)])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10_000])
    options = parser.parse_args(arguments)
    print("| cells | jobs | grid, s | jobs, s | schedule, s | step, ms | longest, ms |")
    print("|---|---|---|---|---|---|---|")
    for cells in options.cells:
        print(measure(cells), flush=True)


if __name__ == "__main__":
    main()
