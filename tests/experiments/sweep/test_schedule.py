"""The order of a sweep's jobs, and what a step of it looks at."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from experiments.run.scenario import Scenario
from experiments.sweep import schedule
from experiments.sweep.jobs import Job
from experiments.sweep.outcomes import Outcome, noted
from experiments.sweep.schedule import Schedule
from fl_sim.progress import SILENT

DEFENSES = ("lwlrd", "gaussian_noise", "scratch")


def scenario(number: int) -> Scenario:
    values = {
        "mode": "centralized",
        "dataset": "phantoms",
        "model": "cnn",
        "attack": "transpose",
        "defense": DEFENSES[number % len(DEFENSES)],
        "seed": number,
    }
    return Scenario.from_mapping(values)


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return [scenario(number) for number in range(2 * len(DEFENSES))]


def planned(cells: int, scenarios: Sequence[Scenario], out: Path) -> list[Job]:
    """Cells that need an upload each three, a floor all, and every fourth something outside."""
    jobs = [Job("floor-0", "floor", scenarios[0], out / "floor")]
    for number in range(cells):
        case = scenarios[number % len(scenarios)]
        needs = [f"upload-{number // 3}", "floor-0"]
        if number % 3 == 0:
            first: tuple[str, ...] = ()
            if number % 4 == 0:
                first = (f"outside-{number}",)
                jobs.append(Job(first[0], "outside", case, out / first[0]))
            jobs.append(Job(needs[0], "upload", case, out / needs[0], first))
        jobs.append(Job(f"cell-{number}", "cell", case, out / str(number), tuple(needs)))
    return jobs


class Plain:
    """The same order, found anew from all jobs at every step."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = {job.key: job for job in jobs}
        self.open = set(self.jobs)
        self.waiting = set(self.jobs)
        self.ended: dict[str, float] = {}

    def take(self, places: int) -> list[str]:
        ways = self.ways()
        ready = [
            key
            for key, job in self.jobs.items()
            if key in self.waiting and not self.open.intersection(job.needs)
        ]
        chosen = sorted(ready, key=lambda key: -ways[key])[:places]
        self.waiting -= set(chosen)
        return chosen

    def ways(self) -> dict[str, float]:
        after: dict[str, float] = {}
        ways: dict[str, float] = {}
        for key in reversed(self.jobs):
            if key in self.open:
                ways[key] = self.guess(key) + after.get(key, 0.0)
                for need in self.jobs[key].needs:
                    after[need] = max(after.get(need, 0.0), ways[key])
        return ways

    def guess(self, key: str) -> float:
        groups = schedule._Likeness.of(self.jobs[key]).groups
        for level, group in enumerate(groups):
            likes = [
                wall
                for other, wall in self.ended.items()
                if schedule._Likeness.of(self.jobs[other]).groups[level] == group
            ]
            if likes:
                return sum(likes) / len(likes)
        unseen = [schedule._Likeness.of(self.jobs[other]).unseen for other in self.ended]
        scale = sum(self.ended.values()) / sum(unseen) if unseen else 1.0
        return scale * schedule._Likeness.of(self.jobs[key]).unseen

    def close(self, outcome: Outcome) -> None:
        self.open.discard(outcome.key)
        failed = {outcome.key} if outcome.error else set()
        if not failed:
            self.ended[outcome.key] = outcome.wall
        for key, job in self.jobs.items():
            if failed.intersection(job.needs) and key in self.waiting:
                failed.add(key)
                self.open.discard(key)
                self.waiting.discard(key)


class Crew:
    """Hands back one job after another; some take longer than others, and some fail."""

    slots = 3

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.taken: list[str] = []
        self.fails = fails
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.taken.append(job.key)
        self._jobs.append(job)

    def wait(self) -> list[Outcome]:
        job = self._jobs.pop(0)
        return [outcome_of(job, self.fails)]


def outcome_of(job: Job, fails: Sequence[str]) -> Outcome:
    wall = 1.0 + 7 * job.scenario.seed % 5 + len(job.key) / 8
    return Outcome(job.key, job.kind, wall, wall, "broken" if job.key in fails else None)


def plain_order(jobs: Sequence[Job], fails: Sequence[str]) -> Iterator[str]:
    plain, running = Plain(jobs), list[str]()
    while plain.open:
        taken = plain.take(Crew.slots - len(running))
        yield from taken
        running += taken
        plain.close(outcome_of(plain.jobs[running.pop(0)], fails))


@pytest.mark.parametrize(
    "fails", [(), ("upload-1",), ("outside-0", "cell-4", "upload-3"), ("floor-0",)]
)
def test_the_order_is_that_of_a_look_at_all_jobs(
    fails: tuple[str, ...], scenarios: list[Scenario], tmp_path: Path
) -> None:
    jobs = planned(24, scenarios, tmp_path)
    crew, order = Crew(fails), Schedule(jobs, tmp_path)
    order.work_off(crew, SILENT)
    assert crew.taken == list(plain_order(jobs, fails))
    assert not order.open
    given_up = noted([job.key for job in jobs], tmp_path)
    assert set(given_up) | set(crew.taken) == {job.key for job in jobs}
    assert all(outcome.error == "broken" for outcome in given_up.values())
    assert bool(given_up) == any(not key.startswith("cell") for key in fails)


def test_a_step_looks_at_shapes_and_not_at_jobs(
    scenarios: list[Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed: list[int] = []
    plain = schedule._Guesses.seconds

    def counted(self: schedule._Guesses, likeness: schedule._Likeness) -> float:
        guessed.append(1)
        return plain(self, likeness)

    monkeypatch.setattr(schedule._Guesses, "seconds", counted)
    asked = {}
    for cells in (60, 600):
        jobs = planned(cells, scenarios, tmp_path)
        order = Schedule(jobs, tmp_path)
        guessed.clear()
        order.work_off(Crew(), SILENT)
        asked[cells] = len(guessed) / len(jobs)
    assert asked[600] < 1.2 * asked[60] < 1.2 * 60
