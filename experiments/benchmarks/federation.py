"""What a federation costs beyond its local training, on either engine.

Prints Markdown rows of three tables, all measured in one run on one machine:

- a round's wall time over its ideal: the same local steps in a bare loop with nothing around it,
  by as many processes as the engine has at work (Ray here 2 on 2 cores; in-process 1);
- the fixed cost: from the call to the first local step, and for tearing the engine down;
- peak memory with 10, 100 and 1,000 hospitals of which 10 or all train in a round, a single step on
  a few images each: of this process, and of this process with all its children. Shared pages are
  counted once (PSS) or in every process (RSS).

Usage: ``python -m experiments.benchmarks.federation [--quick] [--only memory --model resnet18]``
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from clients.settings import HospitalSettings
from fl_sim.case import CaseSettings
from fl_sim.component import Component
from fl_sim.data.splits import HeldOutSettings
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.training import TrainingSettings

PLUGIN = "experiments.benchmarks.federation"
PIXELS = 28
BATCH = 32


def build_small(spec: ModelSpec) -> nn.Module:
    """Build the benchmark's small CNN of about 155,000 parameters at 28 px."""
    return nn.Sequential(
        nn.Conv2d(spec.channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 7 * 7, 60),
        nn.ReLU(),
        nn.Linear(60, spec.classes),
    )


if __name__ == PLUGIN:  # not in the copy of this module that is the program
    MODELS.register("benchmark-cnn", "155,000 parameters")(ModelEntry(build_small))


@dataclass(frozen=True)
class Shape:
    """One federation to measure.

    Args:
        model: registered model.
        hospitals: how many.
        cohort: how many train in a round.
        images: training images of a hospital.
        epochs: local passes in a round.
        rounds: measured rounds; one more comes first, to warm up.
    """

    model: str
    hospitals: int
    cohort: int
    images: int
    epochs: float
    rounds: int

    def settings(self) -> HospitalSettings:
        """Return what the hospitals are told."""
        total = self.hospitals * self.images
        dataset = {"size": PIXELS, "train": total, "validation": 16, "test": 16}
        case = CaseSettings(
            dataset=Component(name="phantoms", settings=dataset),
            model=Component(name=self.model, settings={"stem": "default"}),
            data=HeldOutSettings(public_images=0),
        )
        training = TrainingSettings(epochs=self.epochs, batch_size=BATCH, optimizer="sgd")
        return HospitalSettings(
            case=case,
            hospitals=self.hospitals,
            rounds=self.rounds + 1,
            training=training,
            plugins=(PLUGIN,),
        )


@dataclass
class Measured:
    """What a run cost, in seconds and bytes."""

    first_step: float
    rounds: list[float]
    total: float
    end: float
    peak_rss: int
    peak_pss: int
    peak_driver: int


def federate(shape: Shape, engine: str) -> Measured:
    """Run a federation and measure it."""
    from clients.app import client_app
    from clients.hospital import dealt
    from fl_sim.case import open_case
    from fl_sim.engine import EngineSettings, run
    from fl_sim.engine.records import to_record
    from fl_sim.models import build
    from strategies.base import build_aggregator
    from strategies.defended import DefendedStrategy
    from strategies.observers import Unobserved

    class Clock(Unobserved):
        ends: list[float] = []  # noqa: RUF012
        seconds: list[float] = []  # noqa: RUF012

        def upload(self, server_round: int, hospital: int, state: Any, metrics: Any) -> None:
            if server_round == 1:
                self.seconds.append(float(metrics["seconds"]))

        def release(self, server_round: int, state: Any, report: Any) -> None:
            self.ends.append(time.perf_counter())

    import_module(PLUGIN)
    settings = shape.settings()
    clock = Clock()
    clock.ends, clock.seconds = [], []
    strategy = DefendedStrategy(
        build_aggregator("fedavg"),
        hospitals=shape.hospitals,
        hospital_settings_json=settings.model_dump_json(),
        cohort=shape.cohort,
        observer=clock,
        dealt=dealt(settings),
    )
    memory = MemoryWatch()
    began = time.perf_counter()
    spec = open_case(settings.case, None).spec
    initial = to_record(build(spec).state_dict())
    opened = time.perf_counter()

    def main(grid: Any) -> float:
        strategy.start(grid, initial, shape.rounds + 1)
        return time.perf_counter()

    with memory:
        served = run(EngineSettings(engine=engine), main, client_app, shape.hospitals)
    ended = time.perf_counter()
    # The first round's training, over as many as work at once, is not part of the fixed cost.
    training = sum(clock.seconds) / (workers() if engine == "ray" else 1)
    return Measured(
        first_step=max(0.0, clock.ends[0] - opened - training),
        rounds=[b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)],
        total=ended - began,
        end=ended - served,
        peak_rss=memory.rss,
        peak_pss=memory.pss,
        peak_driver=memory.driver,
    )


def bare_rounds(shape: Shape, start: int, step: int) -> list[float]:
    """Do the local steps of every ``step``-th hospital of a round, in a bare loop; its seconds."""
    import numpy as np

    from fl_sim.case import open_case
    from fl_sim.models import build
    from fl_sim.training import batch_indices, make_optimizer, normalized

    import_module(PLUGIN)
    torch.set_num_threads(1)
    settings = shape.settings()
    case = open_case(settings.case, None)
    model = build(case.spec)
    seconds = []
    for _ in range(shape.rounds + 1):
        began = time.perf_counter()
        for hospital in range(start, shape.cohort, step):
            rows = np.arange(hospital * shape.images, (hospital + 1) * shape.images)
            data = case.train.subset(rows)
            optimizer = make_optimizer(
                model.parameters(), settings.training, settings.training.learning_rate
            )
            batches = batch_indices(len(data), BATCH, np.random.default_rng(0))
            model.train()
            for _ in range(settings.training.steps(len(data))):
                pixels, labels = data.batch(next(batches))
                optimizer.zero_grad(set_to_none=True)
                case.task.loss(model(normalized(pixels)), labels).backward()
                optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def ideal_round(shape: Shape, processes: int) -> list[float]:
    """Return the seconds of a round's bare local steps, divided over processes."""
    if processes == 1:
        return bare_rounds(shape, 0, 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(bare_rounds, shape, number, processes) for number in range(processes)]
        each = [job.result() for job in jobs]
    return [max(together) for together in zip(*each, strict=True)]


class MemoryWatch:
    """Peak memory of this process and of it with all its children, sampled four times a second."""

    def __init__(self) -> None:
        self.rss = self.pss = self.driver = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            sizes = [memory_of(pid) for pid in family(os.getpid())]
            self.rss = max(self.rss, sum(rss for rss, _ in sizes))
            self.pss = max(self.pss, sum(pss for _, pss in sizes))
            self.driver = max(self.driver, memory_of(os.getpid())[0])
            if self._stop.wait(0.25):
                return


def memory_of(pid: int) -> tuple[int, int]:
    """Return a process's RSS and PSS in bytes, zero if it has gone (Linux)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in text.splitlines()
        if line.startswith(("Rss:", "Pss:"))
    }
    return sizes.get("Rss", 0), sizes.get("Pss", 0)


def family(root: int) -> list[int]:
    """Return a process and all its descendants (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def workers() -> int:
    """Return how many hospitals Ray has at work at once, with a core for each."""
    return os.cpu_count() or 1


def alone(job: str, **arguments: Any) -> Any:
    """Run a measurement in a process of its own, so that none inherits another's memory."""
    command = [sys.executable, "-m", PLUGIN, "--job", json.dumps({"job": job, **arguments})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_job(text: str) -> None:
    """Do what :func:`alone` asked for, in the process that it started."""
    task = json.loads(text)
    shape = Shape(**task["shape"])
    if task["job"] == "ideal":
        print(json.dumps(ideal_round(shape, task["processes"])))
    else:
        print(json.dumps(asdict(federate(shape, task["engine"]))))


def measure_rounds(shapes: list[Shape], engines: list[str], report: Callable[[str], None]) -> None:
    """Print wall time over the ideal, and the fixed cost, by shape and engine."""
    report(
        "| model | engine | hospitals | round, s | ideal, s | ratio | to first step, s | end, s |"
    )
    report("|---|---|---|---|---|---|---|---|")
    for shape in shapes:
        for engine in engines:
            processes = workers() if engine == "ray" else 1
            # The ideal before and after: another's load shows as a difference between the two.
            before = alone("ideal", shape=asdict(shape), processes=processes)
            cost = Measured(**alone("federate", shape=asdict(shape), engine=engine))
            after = alone("ideal", shape=asdict(shape), processes=processes)
            ideal = statistics.median(before + after)
            wall = statistics.median(cost.rounds)
            report(
                f"| {shape.model} | {engine} ({processes}) | {shape.hospitals} | {wall:.2f} | "
                f"{ideal:.2f} ({statistics.median(before):.2f}, {statistics.median(after):.2f}) | "
                f"{wall / ideal:.2f} | {cost.first_step:.1f} | {cost.end:.1f} |"
            )


def measure_memory(shapes: list[tuple[Shape, str]], report: Callable[[str], None]) -> None:
    """Print peak memory by shape and engine."""
    report(
        "| model | engine | hospitals | cohort | all, RSS MB | all, PSS MB | driver, RSS MB | s |"
    )
    report("|---|---|---|---|---|---|---|---|")
    for shape, engine in shapes:
        cost = Measured(**alone("federate", shape=asdict(shape), engine=engine))
        report(
            f"| {shape.model} | {engine} | {shape.hospitals} | {shape.cohort} | "
            f"{cost.peak_rss / 1e6:.0f} | {cost.peak_pss / 1e6:.0f} | "
            f"{cost.peak_driver / 1e6:.0f} | {cost.total:.0f} |"
        )


def crowd(model: str, hospitals: int, cohort: int) -> Shape:
    """Return a federation whose hospitals hardly train: a single step on a few images.

    Of a large network there is one round, since checking and summing is what takes the time.
    """
    small = model == "benchmark-cnn"
    return Shape(model, hospitals, cohort, 4 if small else 2, 1, 1 if small else 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller federations")
    parser.add_argument("--engines", nargs="+", default=["inprocess", "ray"])
    parser.add_argument("--only", choices=["rounds", "memory"])
    parser.add_argument("--model", default="benchmark-cnn", help="of the memory table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_job(options.job)
        return

    def report(line: str) -> None:
        print(line, flush=True)

    small = Shape("benchmark-cnn", 4, 4, 640, 1 if options.quick else 4, 3 if options.quick else 5)
    large = Shape("resnet18", 4, 4, 160 if options.quick else 320, 1, 2 if options.quick else 4)
    counts = (10, 100) if options.quick else (10, 100, 1000)
    crowds = [
        (crowd(options.model, count, cohort), engine)
        for engine in options.engines
        for count in counts
        for cohort in sorted({min(10, count), count})
    ]
    if options.only != "memory":
        measure_rounds([small, large], options.engines, report)
        report("")
    if options.only != "rounds":
        measure_memory(crowds, report)


if __name__ == "__main__":
    main()
