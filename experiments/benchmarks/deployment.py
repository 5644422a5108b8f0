"""Faults in a real federation: what is said, whether the round goes on, and what the table is.

``python -m experiments.benchmarks.deployment --out FOLDER``: a small federation of two hospitals is
run in simulation, and then on Flower's deployment runtime, once without and once with each fault,
which comes while hospital 1 trains in round 1. Its table is compared row by row with the
simulation's, without ``seconds``. Prints Markdown rows. Cut and slow links need root, for a network
namespace of hospital 1's own.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.run.deployed_app import APP
from experiments.run.start import run
from fl_sim.engine import reaper
from fl_sim.engine.deployed import ADDRESS, Deployment, deployment
from fl_sim.errors import FlSimError
from fl_sim.results import read_table, without_timings

if TYPE_CHECKING:
    import pandas as pd

SCENARIO = """
mode = "federated"
dataset = {name = "phantoms", size = 16, train = 96, validation = 40, test = 40}
model = "mlp"
threads = 1
data = {public_images = 16}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 1}
federation = {hospitals = 2, rounds = 2, engine = "inprocess", round_timeout = 180}
"""
CUT_SECONDS = 20.0
_SPACE = "fl-sim-hospital-1"
_HERE, _THERE = "10.203.77.1", "10.203.77.2"
_OUTSIDE, _INSIDE = "fl-sim-out", "fl-sim-in"
_TRAINING = "Receiving: train message"
_POLL_SECONDS = 0.1

Fault = Callable[[Deployment], None]


def _killed(made: Deployment) -> None:
    """Kill hospital 1's SuperNode and what it has started."""
    node = made.nodes[1].process.pid
    for process in _family(made, node):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _restarted(made: Deployment) -> None:
    """Kill hospital 1's SuperNode and start it again at once."""
    node = made.nodes[1]
    _killed(made)
    node.process.wait()
    made.restart(node)


def _stopped(made: Deployment) -> None:
    """Stop hospital 1's SuperNode and what it has started for a while."""
    family = _family(made, made.nodes[1].process.pid)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in family:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        if number == signal.SIGSTOP:
            time.sleep(CUT_SECONDS)


def _cut(made: Deployment) -> None:
    """Take hospital 1's link down for a while."""
    for state in ("down", "up"):
        _ip("-n", _SPACE, "link", "set", _INSIDE, state)
        if state == "down":
            time.sleep(CUT_SECONDS)


def _superlink_killed(made: Deployment) -> None:
    assert made.superlink is not None
    made.superlink.kill()


def _nothing(made: Deployment) -> None:
    pass


FAULTS: dict[str, tuple[str, Fault, bool]] = {
    "none": ("none", _nothing, False),
    "killed": ("hospital 1's node killed (SIGKILL)", _killed, False),
    "restarted": ("the same, and started again at once", _restarted, False),
    "stopped": ("hospital 1's node stopped for 20 s (SIGSTOP)", _stopped, False),
    "cut": ("hospital 1's link down for 20 s", _cut, True),
    "slow": ("hospital 1's link slow: 200 ms, 2 Mbit/s", _nothing, True),
    "superlink": ("the SuperLink killed, the same command again", _superlink_killed, False),
}


def _family(made: Deployment, node: int) -> list[int]:
    """Return a node's process and its descendants."""
    parents = {}
    for number in reaper.processes(made.folder):
        with suppress(OSError):
            status = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            parents[number] = int(status[1])
    family = [node]
    while more := [n for n, parent in parents.items() if parent in family and n not in family]:
        family += more
    return family


def _ip(*arguments: str, program: str = "ip") -> None:
    subprocess.run([program, *arguments], check=True)


@contextmanager
def _own_network(slow: bool) -> Iterator[None]:
    """Make a network namespace with one link to this machine."""
    _ip("netns", "add", _SPACE)
    try:
        _ip("link", "add", _OUTSIDE, "type", "veth", "peer", "name", _INSIDE, "netns", _SPACE)
        _ip("address", "add", f"{_HERE}/24", "dev", _OUTSIDE)
        _ip("link", "set", _OUTSIDE, "up")
        _ip("-n", _SPACE, "address", "add", f"{_THERE}/24", "dev", _INSIDE)
        for device in ("lo", _INSIDE):
            _ip("-n", _SPACE, "link", "set", device, "up")
        if slow:
            limits = ("delay", "100ms", "rate", "2mbit")
            _ip("qdisc", "add", "dev", _OUTSIDE, "root", "netem", *limits, program="tc")
            inside = ("netns", "exec", _SPACE, "tc", "qdisc", "add", "dev", _INSIDE)
            _ip(*inside, "root", "netem", *limits)
        yield
    finally:
        _ip("netns", "delete", _SPACE)


def _play(name: str, scenario: Path, out: Path) -> tuple[list[str], float]:
    """Run the federation with a fault; returns what was said and the seconds of the run."""
    _, fault, networked = FAULTS[name]
    said: list[str] = []
    with ExitStack() as stack:
        if networked:
            stack.enter_context(_own_network(name == "slow"))
        made = stack.enter_context(deployment(out, address=_HERE if networked else ADDRESS))
        made.start_superlink()
        for hospital in range(2):
            within = ("ip", "netns", "exec", _SPACE) if networked and hospital == 1 else ()
            config = {"partition-id": hospital, "num-partitions": 2}
            made.add_hospital(hospital, config, within=within)
        made.wait_for_hospitals()
        began = time.monotonic()
        over = threading.Event()
        planter = threading.Thread(target=_plant, args=(made, fault, over), daemon=True)
        planter.start()
        try:
            made.run(APP, {"scenario": str(scenario), "out": str(out)}, said.append)
        except FlSimError as error:
            said.append(f"Error: {error}")
        over.set()
        planter.join()
        return said, time.monotonic() - began


def _plant(made: Deployment, fault: Fault, over: threading.Event) -> None:
    """Let the fault come when hospital 1 has been asked to train."""
    log = made.nodes[1].log
    while not over.wait(_POLL_SECONDS):
        if _TRAINING in log.read_text(errors="replace"):
            over.wait(1.0)
            fault(made)
            return


def _rows(folder: Path) -> "pd.DataFrame":
    return without_timings(read_table(folder / "results.csv"))


def main(
    out: Annotated[Path, typer.Option(help="Folder for the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="Only these faults.")] = None,
) -> None:
    """Run the federation with each fault and print the table."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the network goes, too
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    scenario = out / "scenario.toml"
    scenario.write_text(SCENARIO)
    run(scenario, out / "simulated", progress=False)
    wanted = _rows(out / "simulated")
    print("| fault | said | ended | table as simulated | s |\n|---|---|---|---|---|")
    for name in only or FAULTS:
        said, seconds = _play(name, scenario, out / name)
        failed = [line for line in said if line.startswith("Error: ")]
        ended = "by itself"
        if failed:
            _, more = _play("none", scenario, out / name)
            seconds += more
            ended = "by the same command again"
        told = [line for line in said if line.startswith(("Error: ", "Warning: "))]
        equal = "yes" if _rows(out / name).equals(wanted) else "no"
        print(
            f"| {FAULTS[name][0]} | {' '.join(told).replace(f'{out}/', '') or '-'} | {ended} | "
            f"{equal} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
