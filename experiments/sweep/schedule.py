"""The order of a sweep's jobs: each as soon as what it needs is there, the longest way first.

A step, from one outcome to the next, looks at the shapes of jobs, of which a sweep has a few, and
at what waits for the one that has ended; never at all jobs. Jobs are of one shape if they are
guessed to take as long, and shapes that are the same wait for them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

from experiments.sweep.jobs import Job
from experiments.sweep.outcomes import Outcome, note, noted
from experiments.sweep.workers import Workers
from fl_sim.progress import Progress, piece

_GUESSED_SECONDS = {"outside": 60.0, "training": 30.0, "upload": 30.0, "floor": 10.0, "cell": 10.0}
"""Of a kind of job before one has ended; they set the order, and nothing else."""


class Schedule:
    """The order of a sweep's jobs.

    Args:
        jobs: of the sweep, those that others need first.
        out: its folder.

    Attributes:
        open: keys of the jobs that have not ended.
        done: what became of the others, since the start.
    """

    def __init__(self, jobs: Sequence[Job], out: Path) -> None:
        self._out = out
        self._jobs = {job.key: job for job in jobs}
        ended = {
            key: outcome
            for key, outcome in noted(self._jobs, out).items()
            if outcome.error is None and self._jobs[key].finished
        }
        # Shared work is done for a cell that is open, not for its own sake.
        wanted: set[str] = set()
        for job in reversed(jobs):
            if job.key not in ended and (job.kind == "cell" or job.key in wanted):
                wanted |= {job.key, *job.needs}
        self.open = {key for key in self._jobs if key in wanted and key not in ended}
        self.done: list[Outcome] = []
        self._failed: dict[str, str] = {}
        self._guesses = _Guesses()
        for key, outcome in ended.items():
            self._guesses.learn(self._jobs[key], outcome.wall)
        self._queue = _Queue([job for job in jobs if job.key in self.open])

    def work_off(self, crew: Workers, progress: Progress) -> None:
        """Do every open job; those whose needs failed have failed."""
        running = 0
        cells = sum(self._jobs[key].kind == "cell" for key in self.open)
        with piece(progress, "cells", cells):
            while self.open:
                for job in self._queue.take(crew.slots - running, self._guesses):
                    running += 1
                    crew.submit(job)
                failed: list[str] = []
                for outcome in crew.wait() if running else ():
                    running -= 1
                    failed += self._take(outcome)
                    progress.step(self._note(crew.slots), advance=outcome.kind == "cell")
                for job in self._give_up(failed):
                    progress.step(self._note(crew.slots), advance=job.kind == "cell")

    def _take(self, outcome: Outcome) -> list[str]:
        """Note what became of a job; return its key if it failed."""
        self.done.append(outcome)
        self.open.discard(outcome.key)
        self._queue.close(outcome.key, outcome.error is None)
        if outcome.error is None:
            self._guesses.learn(self._jobs[outcome.key], outcome.wall)
            return []
        self._failed[outcome.key] = outcome.error
        return [outcome.key]

    def _give_up(self, failed: Iterable[str]) -> list[Job]:
        """Note the failure of jobs that need what failed, and return them, in the grid's order."""
        gone = self._queue.drop(failed) if failed else []
        for job in gone:
            cause = next(self._failed[need] for need in job.needs if need in self._failed)
            note(Outcome(job.key, job.kind, 0.0, 0.0, cause), self._out)
            self._failed[job.key] = cause
            self.open.discard(job.key)
        return gone

    def _note(self, slots: int) -> str:
        left = self._queue.seconds(self._guesses, slots)
        minutes, seconds = divmod(round(left), 60)
        note = f"about {minutes} min {seconds:02d} s left"
        failed = sum(self._jobs[key].kind == "cell" for key in self._failed)
        return note + (f", {failed} failed" if failed else "")


@dataclass(frozen=True)
class _Likeness:
    """What the guess of a job's duration depends on.

    Args:
        groups: of jobs of like duration that it is in, the closest likeness first.
        unseen: seconds, as long as nothing like it has ended.
    """

    groups: tuple[tuple[Any, ...], ...]
    unseen: float

    @classmethod
    def of(cls, job: Job) -> "_Likeness":
        """Return that of a job."""
        scenario = job.scenario
        attack = scenario.attack.name if scenario.attack else None
        defense = scenario.defense.model_dump_json() if scenario.defense else None
        rounds = scenario.federation.rounds if scenario.federation else 0
        case = (job.kind, scenario.dataset.name, scenario.model.name, rounds)
        groups = ((*case, attack, defense), (*case, attack), (*case, None, defense), case)
        seconds = _GUESSED_SECONDS[job.kind]
        return cls(groups, seconds * (1 + rounds) if job.kind == "cell" else seconds)


class _Guesses:
    """How long jobs may take: like those that have ended."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}
        self._unseen = self._taken = 0.0

    def learn(self, job: Job, wall: float) -> None:
        """Take the seconds of a job that has ended."""
        likeness = _Likeness.of(job)
        self._unseen += likeness.unseen
        self._taken += wall
        for group in likeness.groups:
            seconds, count = self._seen.get(group, (0.0, 0))
            self._seen[group] = seconds + wall, count + 1

    def seconds(self, likeness: _Likeness) -> float:
        """Return the seconds that a job may take."""
        for group in likeness.groups:
            if group in self._seen:
                seconds, count = self._seen[group]
                return seconds / count
        scale = self._taken / self._unseen if self._unseen else 1.0
        return scale * likeness.unseen


@dataclass(frozen=True, eq=False)
class _Shape:
    """What the way from a job's start to the end of all that waits for it depends on.

    Args:
        likeness: of the job.
        waiting: shapes of the open jobs that need it.
    """

    likeness: _Likeness
    waiting: frozenset["_Shape"]


class _Queue:
    """The open jobs, and of those that are not taken the ones that are ready.

    Args:
        jobs: those that others need first; what is not among them is no need.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)
        self._place = {job.key: place for place, job in enumerate(jobs)}
        self._open = [True] * len(jobs)
        self._waiting: list[list[int]] = [[] for _ in jobs]
        self._missing = [0] * len(jobs)
        for place in range(len(jobs)):
            for need in self._needs(place):
                self._waiting[need].append(place)
                self._missing[place] += 1
        self._known: dict[tuple[_Likeness, frozenset[_Shape]], _Shape] = {}
        self._likeness = [_Likeness.of(job) for job in jobs]
        self._shapes: dict[int, _Shape] = {}
        self._open_of: Counter[_Shape] = Counter()
        self._ready: dict[_Shape, list[int]] = {}  # places, each a heap: the grid's order
        for place in reversed(range(len(jobs))):
            self._enter(place)
        for place, missing in enumerate(self._missing):
            if not missing:
                self._make_ready(place)

    def take(self, count: int, guesses: _Guesses) -> list[Job]:
        """Return ready jobs, at most so many, the longest way first, then in the grid's order."""
        taken: list[Job] = []
        ways = self._ways(self._ready, guesses) if count > 0 else {}
        while self._ready and len(taken) < count:
            shape = max(self._ready, key=lambda one: (ways[one], -self._ready[one][0]))
            taken.append(self._jobs[heappop(self._ready[shape])])
            if not self._ready[shape]:
                del self._ready[shape]
        return taken

    def close(self, key: str, well: bool) -> None:
        """Take out a job that was taken and has ended; what waited for it alone is ready."""
        place = self._place[key]
        self._leave(place)
        for other in self._waiting[place] if well else ():
            self._missing[other] -= 1
            if not self._missing[other] and self._open[other]:
                self._make_ready(other)

    def drop(self, failed: Iterable[str]) -> list[Job]:
        """Take out the jobs that need one that failed, directly or not; return them in order."""
        places = [other for key in failed for other in self._waiting[self._place[key]]]
        heapify(places)
        gone: list[int] = []
        while places:
            place = heappop(places)
            if self._open[place]:
                self._leave(place)
                gone.append(place)
                for other in self._waiting[place]:
                    heappush(places, other)
        self._reshape({need for place in gone for need in self._needs(place)})
        return [self._jobs[place] for place in gone]

    def seconds(self, guesses: _Guesses, slots: int) -> float:
        """Return how long all open jobs may take, so many at a time."""
        each = (n * guesses.seconds(shape.likeness) for shape, n in self._open_of.items())
        longest = max(self._ways(self._open_of, guesses).values(), default=0.0)
        return max(sum(each) / slots, longest)

    def _needs(self, place: int) -> list[int]:
        return [self._place[need] for need in self._jobs[place].needs if need in self._place]

    def _enter(self, place: int) -> None:
        """Give a job its shape; those that wait for it have theirs."""
        waiting = frozenset(
            self._shapes[other] for other in self._waiting[place] if self._open[other]
        )
        likeness = self._likeness[place]
        shape = self._known.setdefault((likeness, waiting), _Shape(likeness, waiting))
        self._shapes[place] = shape
        self._open_of[shape] += 1
        self._open[place] = True

    def _leave(self, place: int) -> None:
        self._open[place] = False
        shape = self._shapes[place]
        self._open_of[shape] -= 1
        if not self._open_of[shape]:
            del self._open_of[shape]

    def _make_ready(self, place: int) -> None:
        heappush(self._ready.setdefault(self._shapes[place], []), place)

    def _reshape(self, places: Iterable[int]) -> None:
        """Give jobs shapes anew that others no longer wait for, and those that they wait for."""
        left = [-place for place in places if self._open[place]]
        heapify(left)  # from the last, since those that wait come after
        while left:
            place = -heappop(left)
            before = self._shapes[place]
            self._leave(place)
            self._enter(place)
            if self._shapes[place] is before:
                continue
            for need in self._needs(place):
                if self._open[need]:
                    heappush(left, -need)
            if place in self._ready.get(before, ()):
                self._ready[before].remove(place)
                heapify(self._ready[before])
                if not self._ready[before]:
                    del self._ready[before]
                self._make_ready(place)

    def _ways(self, shapes: Iterable[_Shape], guesses: _Guesses) -> dict[_Shape, float]:
        """Return for shapes the seconds to the end of the longest chain that waits for them."""
        ways: dict[_Shape, float] = {}

        def way(shape: _Shape) -> float:
            if shape not in ways:
                after = max(map(way, shape.waiting), default=0.0)
                ways[shape] = guesses.seconds(shape.likeness) + after
            return ways[shape]

        return {shape: way(shape) for shape in shapes}
