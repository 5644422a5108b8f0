"""Thousands of damaged files through whoever reads them: none may end in a traceback.

``python -m experiments.benchmarks.mutations --kind key --mutations 3000 --seed 0 --out kept``
makes small honest files by itself, damages them, gives each to what a user would call, and counts:
accepted, refused in one sentence, or a traceback (also: killed, or longer than a minute), whose
file and text are kept. The same seed makes the same mutants.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from experiments.benchmarks.mutation_kinds import KINDS, Kind
from fl_sim.errors import FlSimError

SECONDS = 60.0
ACCEPTED, REFUSED, TRACEBACK = "accepted", "refused", "traceback"


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Args:
        number: of the mutant.
        kind: ``"accepted"``, ``"refused"`` or ``"traceback"``.
        text: the sentence, or the traceback.
        peak: largest resident memory of the process so far, in MB.
    """

    number: int
    kind: str
    text: str
    peak: float


def main() -> None:
    """Print a Markdown row, and what was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=[*KINDS], required=True)
    parser.add_argument("--mutations", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mutants"), help="folder of what is kept")
    arguments = parser.parse_args()
    began = time.perf_counter()
    outcomes = mutate(arguments.kind, arguments.mutations, arguments.seed, arguments.out)
    counts = Counter(outcome.kind for outcome in outcomes)
    longest = max(len(o.text) for o in outcomes if o.kind != TRACEBACK) if outcomes else 0
    peak = max((outcome.peak for outcome in outcomes), default=0.0)
    print("| kind | mutations | accepted | refused | traceback | longest, characters | s | MB |")
    print("|---|---|---|---|---|---|---|---|")
    seconds = time.perf_counter() - began
    print(
        f"| {arguments.kind} | {len(outcomes)} | {counts[ACCEPTED]} | {counts[REFUSED]} | "
        f"{counts[TRACEBACK]} | {longest} | {seconds:.0f} | {peak:.0f} |"
    )


def mutate(kind: str, mutations: int, seed: int, out: Path) -> list[Outcome]:
    """Mutate and read.

    Args:
        kind: of file, one of :data:`experiments.benchmarks.mutation_kinds.KINDS`.
        mutations: how many.
        seed: of the mutants.
        out: folder for the mutants that ended in a traceback, and their tracebacks.

    Returns:
        What became of each.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        # The process that reads may die of a mutant; the next one goes on behind it.
        target = KINDS[kind](Path(folder))
        target.name.write_bytes(target.seeds[0])
        target.read(target.name)
        while len(outcomes) < mutations:
            outcomes += _batch(target, kind, seed, range(len(outcomes), mutations))
        for outcome in (o for o in outcomes if o.kind == TRACEBACK):
            out.mkdir(parents=True, exist_ok=True)
            name = f"{kind}-seed{seed}-{outcome.number}"
            (out / f"{name}.mutant").write_bytes(_mutant(target, kind, seed, outcome.number))
            (out / f"{name}.txt").write_text(outcome.text, encoding="utf-8")
    return outcomes


def _batch(target: Kind, kind: str, seed: int, numbers: range) -> list[Outcome]:
    """Read mutants in a process of their own, until all are read or it ends."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(target, kind, seed, numbers, send), daemon=True)
    child.start()
    send.close()
    outcomes: list[Outcome] = []
    try:
        while len(outcomes) < len(numbers):
            if not receive.poll(SECONDS):
                raise EOFError(f"it took longer than {SECONDS:.0f} seconds")
            outcomes.append(receive.recv())
    except EOFError as error:
        child.kill()
        child.join()
        said = str(error) or f"the process ended with {child.exitcode}"
        outcomes.append(Outcome(numbers[len(outcomes)], TRACEBACK, said, 0.0))
    child.join(1)
    return outcomes


def _work(target: Kind, kind: str, seed: int, numbers: range, send: Connection) -> None:
    warnings.simplefilter("ignore")
    for number in numbers:
        target.name.write_bytes(_mutant(target, kind, seed, number))
        what, text = ACCEPTED, ""
        try:
            target.read(target.name)
        except FlSimError as refusal:
            what, text = REFUSED, str(refusal)
            if "\n" in text or not text.isprintable():
                what, text = TRACEBACK, f"not one printable sentence: {text!r}"
        except BaseException:
            what, text = TRACEBACK, traceback.format_exc()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        send.send(Outcome(number, what, text, peak))


def _mutant(target: Kind, kind: str, seed: int, number: int) -> bytes:
    return target.mutate(Random(f"{kind}/{seed}/{number}"))


if __name__ == "__main__":
    main()
