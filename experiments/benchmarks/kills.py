"""Runs that are killed at random moments: do they end with the table of one that was not?

``python -m experiments.benchmarks.kills --moments 40 --engine ray --out kills``: a small federation
runs to its end once, and then again and again in fresh folders, where a SIGKILL comes at a moment
drawn between the run's start and its end: to its whole process group, to one of Ray's processes
(a daemon, an agent or a worker), or to an actor, in turns. Moments are counted in CPU time of the
run's processes, which other programs on the machine do not stretch. The same command is given
until it ends well; its table is compared row by row with the first one's, without ``seconds``. Then
everything is counted that is left of all this: processes that were seen below the killed program,
and files in its temporary folder and in shared memory. Writes ``kills.csv``, a row a kill.
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from fl_sim.results import read_table, without_timings

SCENARIO = """
mode = "federated"
dataset = {name = "phantoms", size = 16, train = 96, validation = 40, test = 40}
model = "cnn"
threads = 1
attack = {name = "transpose", images = 4}
defense = {name = "lwlrd", epochs = 1}
data = {public_images = 16}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 1}
federation = {hospitals = 3, rounds = 2}
"""
ATTEMPTS = 3
SHARED_MEMORY = Path("/dev/shm")
SESSION = "fl-sim-ray-"
ACTOR = "ClientAppActor"
_PATIENCE_SECONDS = 10.0
_LIMIT_SECONDS = 600.0

Process = tuple[int, int]  # its number, and when it started: numbers are used again


@dataclass
class Kill:
    """One kill and what came of it: a row of the table."""

    number: int
    kind: str
    share: float
    moment: float = float("nan")
    victim: str = ""
    exit_status: int | None = None
    resumed: int = 0
    equal: bool = False
    processes_after: int = 0
    seconds_to_clear: float = float("nan")
    processes_left: int = 0
    files_left: int = 0
    shared_memory_left: int = 0
    said: str = ""


@dataclass
class Program:
    """The command, running, with every process that was ever seen below it."""

    process: "subprocess.Popen[str]"
    temporary: Path
    seen: set[Process] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    spent: float = 0.0

    def watch(self) -> None:
        """Note the processes below and the CPU seconds of all, and names of temporary folders."""
        spent: dict[int, float] = {}
        while self.process.poll() is None:
            found = below(self.process.pid)
            self.seen |= set(found)
            self.names |= set(os.listdir(self.temporary))
            for number in (self.process.pid, *(number for number, _ in found)):
                if (fields := _status(number)) is not None:
                    spent[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self.spent = sum(spent.values())
            time.sleep(0.1)


def kills(
    moments: Annotated[int, typer.Option(help="How many kills.")] = 40,
    engine: Annotated[str, typer.Option(help="ray or inprocess.")] = "ray",
    out: Annotated[Path, typer.Option(help="Folder of the runs and of kills.csv.")] = Path("kills"),
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill runs at random moments, continue them, and compare their tables."""
    out = out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "scenario.toml").write_text(SCENARIO)
    draws = random.Random(seed)
    kinds = ("group", "worker", "actor") if engine == "ray" else ("group",)
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as temporary:
        place = Path(temporary)
        began = time.monotonic()
        whole = start(out, "whole", engine, place)
        said = _end(whole)
        seconds = time.monotonic() - began
        if whole.process.returncode:
            raise SystemExit(f"The uninterrupted run failed: {said}")
        print(f"Uninterrupted: {seconds:.0f} s, CPU {whole.spent:.1f} s", flush=True)
        known = set(os.listdir(place))  # torch's empty folder for compiled code
        total, results = whole.spent, list[Kill]()
        while len(results) < moments:
            number = len(results)
            kill = Kill(number, kinds[number % len(kinds)], draws.random())
            spent = one_kill(kill, total, out, engine, place, draws)
            kill.files_left = len(set(os.listdir(place)) - known)
            print(asdict(kill), flush=True)
            if kill.victim:
                results.append(kill)
                _write(out / "kills.csv", results)
            else:  # the run was over before, and took less than the first one
                total = min(total, spent)
    equal = sum(kill.equal for kill in results)
    left = sum(k.processes_left + k.files_left + k.shared_memory_left for k in results)
    print(f"{equal} of {moments} tables equal; {left} processes and files left")


def one_kill(
    kill: Kill, total: float, out: Path, engine: str, place: Path, draws: random.Random
) -> float:
    """Run, kill after its share of the CPU seconds of a whole run, continue, compare, count.

    Returns:
        CPU seconds up to the kill, or to the end.
    """
    name, memory = f"run-{kill.number:03d}", set(os.listdir(SHARED_MEMORY))
    program = start(out, name, engine, place)
    strike(kill, program, total, draws)
    kill.said = _end(program)
    spent = program.spent
    kill.exit_status = program.process.returncode
    ended = time.monotonic()
    kill.processes_after = len(alive(program.seen))
    while alive(program.seen) and time.monotonic() - ended < _PATIENCE_SECONDS:
        time.sleep(0.05)
    kill.seconds_to_clear = time.monotonic() - ended
    seen, names = set(program.seen), set(program.names)
    while program.process.returncode != 0 and kill.resumed < ATTEMPTS:
        kill.resumed += 1
        program = start(out, name, engine, place)
        kill.said = _end(program) or kill.said
        seen |= program.seen
        names |= program.names
    time.sleep(1.0)  # for the system to bury the dead
    kill.processes_left = len(alive(seen))
    # The sessions of other programs that run meanwhile have names that were not seen here.
    new = set(os.listdir(SHARED_MEMORY)) - memory
    kill.shared_memory_left = sum(n in names or not n.startswith(SESSION) for n in new)
    if program.process.returncode == 0:
        one, two = (
            without_timings(read_table(out / which / "results.csv")) for which in ("whole", name)
        )
        kill.equal = one.equals(two)
    shutil.rmtree(out / name, ignore_errors=True)
    return spent


def strike(kill: Kill, program: Program, total: float, draws: random.Random) -> None:
    """Kill when it is time, if the program has not ended before."""
    began, victim = time.monotonic(), None
    while program.process.poll() is None and victim is None:
        if program.spent >= kill.share * total:
            victim = choose(kill.kind, program, draws)
        time.sleep(0.01)
    if victim is None:
        return
    kill.moment, kill.victim = time.monotonic() - began, title(victim)
    if kill.kind == "group":
        os.killpg(program.process.pid, signal.SIGKILL)
    else:
        os.kill(victim, signal.SIGKILL)


def start(out: Path, name: str, engine: str, temporary: Path) -> Program:
    """Give the command, in a process group of its own."""
    command = [sys.executable, "-m", "experiments.cli.main", "run", str(out / "scenario.toml")]
    process = subprocess.Popen(
        [*command, "--out", str(out / name), "--set", f"federation.engine={engine}"],
        env={
            **os.environ,
            "TMPDIR": str(temporary),
            "FL_SIM_CACHE": str(out / "cache"),
            "RAY_worker_niceness": "0",  # or a busy machine leaves the hospitals nothing
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    program = Program(process, temporary)
    threading.Thread(target=program.watch, daemon=True).start()
    return program


def _end(program: Program) -> str:
    """Wait for the program's end; returns the last line of what it said about errors."""
    _, said = program.process.communicate(timeout=_LIMIT_SECONDS)
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def choose(kind: str, program: Program, draws: random.Random) -> int | None:
    """Return a process of the kind, if there is one now."""
    if kind == "group":
        return program.process.pid
    found = [number for number, _ in sorted(below(program.process.pid))]
    actors = [number for number in found if ACTOR in title(number)]
    if kind == "worker":
        others = set(found) - set(actors)
        actors = [number for number in sorted(others) if "ray" in title(number).split("/")[-1]]
    return draws.choice(actors) if actors else None


def below(parent: int) -> list[Process]:
    """Return the processes that descend from one."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _status(int(entry))) is not None:
            children.setdefault(int(fields[1]), []).append((int(entry), int(fields[19])))
    found: list[Process] = []
    open_ = [parent]
    while open_:
        for child in children.get(open_.pop(), ()):
            found.append(child)
            open_.append(child[0])
    return found


def alive(processes: set[Process]) -> set[Process]:
    """Return those that live still, and are not only waiting to be buried."""
    found = set()
    for number, began in processes:
        fields = _status(number)
        if fields is not None and int(fields[19]) == began and fields[0] != "Z":
            found.add((number, began))
    return found


def _status(process: int) -> list[str] | None:
    """Return what the system says of a process, from its state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def title(process: int) -> str:
    """Return a process's name for people."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return " ".join(Path(word.strip()).name for word in words[:3]).strip()[:80]


def _write(path: Path, results: list[Kill]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(kill) for kill in results)


if __name__ == "__main__":
    typer.run(kills)
