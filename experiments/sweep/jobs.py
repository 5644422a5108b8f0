"""The jobs of a sweep: its cells, and the work that several cells share, each done once.

A cell of a data lake needs its attacked model (``upload``), which needs a trained network where
several attacks start from the same (``training``); any cell may need the floor of utility
(``floor``) and what its attacker brings from outside (``outside``). A shared job is named by a
hash of everything that its outcome depends on, so that another grid in the same folder finds it.
"""

import resource
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.run.claim import claimed
from experiments.run.identity import attacked, digest_of, made_here, network, outside, upload
from experiments.run.scenario import MeasureSettings, Scenario
from experiments.run.scratch_floor import floor_ingredients
from experiments.run.standing import TRAINED, is_finished, sweep_run
from experiments.sweep.grid import Cell, Grid
from experiments.sweep.outcomes import Kind, Outcome, note
from fl_sim.case import open_case
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.registry import import_plugins
from fl_sim.rehearsal import AttackerSettings
from fl_sim.training import computing_threads

WEIGHTS = "weights.safetensors"
TRACEBACK = "error.txt"


@dataclass(frozen=True)
class Job:
    """A piece of work for one process and one thread.

    Args:
        key: names it, and its record's file.
        kind: what is done.
        scenario: with which the work is described.
        folder: where it works; jobs of one folder never work at the same time.
        needs: keys of the jobs that come first.
        source: what it starts from: the trained network's file of an ``upload``, the attacked
            model's folder of a ``cell``; where not given, it does all by itself.
    """

    key: str
    kind: Kind
    scenario: Scenario
    folder: Path
    needs: tuple[str, ...] = ()
    source: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether what it makes is there, as far as a file in its folder tells."""
        if self.kind == "cell":
            return is_finished(self.folder)
        marks = {"training": WEIGHTS, "upload": TRAINED}
        return self.kind not in marks or (self.folder / marks[self.kind]).exists()


def plan_jobs(grid: Grid, out: Path, data_root: Path | None) -> list[Job]:
    """Return the jobs of a grid, those that others need first.

    Args:
        grid: the cells.
        out: folder of the sweep.
        data_root: folder of data files.

    Raises:
        FlSimError: if a data file is missing or broken.
    """
    files = _data_files(grid.cells, data_root)
    planned = [_Planned(cell, out, files[_dataset(cell.scenario)]) for cell in grid.cells]
    uploads: dict[str, set[str]] = {}
    for plan in planned:
        if plan.upload is not None:
            uploads.setdefault(plan.training, set()).add(plan.upload)
    jobs: dict[str, Job] = {}
    for plan in planned:
        for job in plan.jobs(shared=len(uploads.get(plan.training, ())) > 1):
            jobs.setdefault(job.key, job)
    return list(jobs.values())


def work(job: Job, out: Path, data_root: Path | None) -> Outcome:
    """Do a job, in whatever process; note what became of it under ``jobs/``.

    What a killed process had begun is continued, as :func:`experiments.run.start.run` does.

    Returns:
        The outcome. An error is part of it and is not raised.
    """
    began, cpu_before = time.perf_counter(), _cpu_seconds()
    error = None
    (job.folder / TRACEBACK).unlink(missing_ok=True)
    try:
        import_plugins(job.scenario.plugins)
        with computing_threads(1):
            _do(job, data_root)
    except FlSimError as problem:
        error = _line(str(problem))
    except Exception as problem:
        error = _line(f"{type(problem).__name__}: {problem}")
        write_atomically(job.folder / TRACEBACK, traceback.format_exc().encode())
    outcome = Outcome(
        job.key, job.kind, time.perf_counter() - began, _cpu_seconds() - cpu_before, error
    )
    note(outcome, out)
    return outcome


class _Planned:
    """What one cell needs: keys of shared work, and the jobs."""

    def __init__(self, cell: Cell, out: Path, files: list[str]) -> None:
        self._cell, self._out = cell, out
        scenario = cell.scenario
        attack = scenario.make_attack()
        made = made_here(scenario, files, scenario.device)
        self._honest = attack is None or attack.trains_honestly
        trained = network(scenario) if self._honest else attacked(scenario)
        self.training = _key("training", {**trained, **made})
        self.upload: str | None = None
        if scenario.federation is None:
            self.upload = _key("upload", {**upload(scenario), **made})
        floor = floor_ingredients(scenario, files, scenario.device)
        self._floor = _key("floor", floor) if scenario.measure.scratch_epochs else None

    def jobs(self, shared: bool) -> list[Job]:
        """Return the cell and what it needs, in order.

        Args:
            shared: whether several attacked models start from the same trained network.
        """
        scenario, folder = self._cell.scenario, self._out / "cells" / self._cell.name
        jobs: list[Job] = []
        prepared = outside(scenario)
        if prepared:
            key = _key("outside", prepared)
            jobs.append(Job(key, "outside", scenario, self._out / "shared" / key))
        needed = tuple(job.key for job in jobs)
        source = None
        if self.upload is not None:
            source = self._out / "shared" / self.upload
            jobs += self._model(source, needed, shared or self._honest)
            needed = (self.upload,)
        if self._floor is not None:
            # It has a folder of its own: cells that come after another floor are not held up.
            place = self._out / "shared" / self._floor
            jobs.append(Job(self._floor, "floor", _for_floor(scenario), place))
            needed = (*needed, self._floor)
        return [*jobs, Job(self._cell.name, "cell", scenario, folder, needed, source)]

    def _model(self, folder: Path, needed: tuple[str, ...], stored: bool) -> list[Job]:
        attacked = _for_upload(self._cell.scenario)
        assert self.upload is not None
        if not stored:
            return [Job(self.upload, "upload", attacked, folder, needed)]
        place = self._out / "shared" / self.training
        # Honest training waits for nothing that an attacker prepares.
        first = () if self._honest else needed
        trained = _for_training(self._cell.scenario, self._honest)
        needed = (*needed, self.training)
        return [
            Job(self.training, "training", trained, place, first),
            Job(self.upload, "upload", attacked, folder, needed, place / WEIGHTS),
        ]


def _do(job: Job, data_root: Path | None) -> None:
    # Each imported where it is used: a process pays for what it does.
    from experiments.run.running import Run

    if job.kind == "cell":
        from experiments.run.start import run

        run(job.scenario, job.folder, data_root, progress=False, trained=job.source)
        return
    # A worker may outlive a sweep that was killed by a moment, and the next is at work already.
    with claimed(job.folder, job.key):
        sweep_run(job.folder)
        if job.kind == "outside":
            from experiments.run.preflight import check_ready

            attack = job.scenario.make_attack()
            assert attack is not None
            check_ready(job.scenario, open_case(job.scenario.case, data_root), data_root)
            attack.prepare(data_root)
        elif job.kind == "floor":
            from experiments.run.scratch_floor import scratch_floor

            scratch_floor(Run(job.scenario, job.folder, data_root))
        elif not job.finished:
            from experiments.run.centralized import train_and_attack, train_network

            run_of = Run(job.scenario, job.folder, data_root)
            if job.kind == "training":
                train_network(run_of, job.folder / WEIGHTS)
            else:
                train_and_attack(run_of, job.source)


# Shared work is described by scenarios without anything that it does not depend on, so that every
# cell and every grid describes the same work in the same way.


def _for_upload(scenario: Scenario) -> Scenario:
    measure = MeasureSettings(usability_epochs=scenario.measure.usability_epochs)
    known = scenario.defense if scenario.attacker.knows_defense else None
    attacked = scenario.model_copy(update={"defense": known, "measure": measure})
    return attacked if scenario.attacker.knows_defense else _whole_validation(attacked)


def _for_training(scenario: Scenario, honest: bool) -> Scenario:
    attacker = AttackerSettings(hospital=None if honest else scenario.attacker.hospital)
    attack = None if honest else scenario.attack
    parts: dict[str, Any] = {"attack": attack, "defense": None, "attacker": attacker}
    parts |= {"membership": None, "inversion": None}
    shared = scenario.model_copy(update={**parts, "measure": MeasureSettings()})
    return _whole_validation(shared)


def _for_floor(scenario: Scenario) -> Scenario:
    epochs = scenario.measure.scratch_epochs
    alone = _for_training(scenario, honest=True)
    parts = {
        "data": scenario.data,
        "mode": "centralized",
        "federation": None,
        "measure": MeasureSettings(scratch_epochs=epochs),
        "training": scenario.training.model_copy(update={"epochs": float(epochs)}),
    }
    return alone.model_copy(update=parts)


def _whole_validation(scenario: Scenario) -> Scenario:
    """Leave out how many images are held out, on which no model depends before its release.

    Where a part of them is measured on, all that is measured does.
    """
    if scenario.data.validation_share is not None:
        return scenario
    data = scenario.data.model_copy(update={"images": None})
    return scenario.model_copy(update={"data": data})


def _key(kind: Kind, ingredients: Mapping[str, Any]) -> str:
    return f"{kind}-{digest_of(dict(ingredients))[:16]}"


def _dataset(scenario: Scenario) -> str:
    return scenario.dataset.model_dump_json()


def _data_files(cells: Iterable[Cell], data_root: Path | None) -> dict[str, list[str]]:
    """Return the checksums of each dataset's files; a missing file is told before any work."""
    files: dict[str, list[str]] = {}
    for cell in cells:
        dataset, key = cell.scenario.dataset, _dataset(cell.scenario)
        if key not in files:
            loaded = load_dataset(dataset.name, dataset.settings, data_root)
            files[key] = [file.sha256 for file in loaded.files]
    return files


def _line(text: str) -> str:
    return " ".join(text.split())


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
