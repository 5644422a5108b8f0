"""The engine on Ray: Flower's Simulation Runtime, with its rough edges taken off."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fl_sim.engine.base import ENGINES, EngineSettings
from fl_sim.engine.cluster import leave, ray_running, root
from fl_sim.engine.quiet import quiet_flower
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

T = TypeVar("T")
_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 10.0
"""How long SIGTERM and SIGHUP wait for hospitals at work; who sends them may soon send SIGKILL."""


class _Outcome(Generic[T]):
    """What the server's side came to; it runs in another thread."""

    def __init__(self) -> None:
        self.results: list[T] = []
        self.error: BaseException | None = None


def run_ray(
    settings: EngineSettings,
    main: "Callable[[Grid], T]",
    client_app: "ClientApp",
    hospitals: int,
) -> T:
    """Run a federation on Ray; see :func:`fl_sim.engine.base.run`.

    Ctrl-C ends the server's side at its next wait for replies, and Ray once the hospitals at work
    have finished; a second Ctrl-C leaves at once. SIGTERM and SIGHUP do the same where the process
    answers them, as the command line does.

    Raises:
        FlSimError: if Ray cannot be started or lacks the resources for one hospital.
        KeyboardInterrupt: after Ctrl-C, when Ray has ended.
    """
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from fl_sim.engine.stoppable import Stopped

    _retry_rounds_only()
    stop = threading.Event()
    outcome: _Outcome[T] = _Outcome()
    server_app = ServerApp()
    server_app.main()(_server_main(main, settings, outcome, stop))
    # Workers find modules where this process finds them. Float sums depend on the number of
    # threads, whatever the user's own setting is.
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (
        quiet_flower(settings.verbose),
        _interruptible(stop) as received,
        ray_running(settings.ray_address, variables, settings.verbose, received),
    ):
        try:
            run_simulation(
                server_app, client_app, hospitals, backend_config=backend_config(settings)
            )
        except Exception as error:
            # Whatever the server's side raised tells more than the runtime's end.
            if outcome.error is None or isinstance(outcome.error, Stopped):
                raise FlSimError(f"The Ray engine broke down: {root(error)}") from error
        finally:
            stop.set()
    if received:
        signal.raise_signal(received[0])
        raise KeyboardInterrupt
    if outcome.error is not None:
        raise outcome.error
    return outcome.results[0]


def backend_config(settings: EngineSettings) -> dict[str, Any]:
    """Return the settings as Flower's Ray backend wants them (JSON values only)."""
    return {
        "client_resources": {
            "num_cpus": settings.cpus_per_hospital,
            "num_gpus": settings.gpus_per_hospital,
            # Options of the actors: without restarts a killed one stays in Flower's pool and
            # fails every message that it is given. A round is a pure function, so what was lost
            # can be done again.
            "max_restarts": -1,
            "max_task_retries": 1,
        },
    }


def _retry_rounds_only() -> None:
    """Keep Ray from announcing, at the end of every run, that it will retry the actors' exit."""
    from flwr.simulation.ray_transport.ray_actor import ClientAppActor

    metadata = getattr(ClientAppActor, "__ray_metadata__", None)
    retries = getattr(getattr(metadata, "method_meta", None), "max_task_retries", None)
    if isinstance(retries, dict):
        retries["terminate"] = 0


def _server_main(
    main: "Callable[[Grid], T]",
    settings: EngineSettings,
    outcome: "_Outcome[T]",
    stop: threading.Event,
) -> "Callable[[Grid, Any], None]":
    import torch

    threads = torch.get_num_threads()

    def server_main(grid: "Grid", context: Any) -> None:
        torch.set_num_threads(threads)
        try:
            outcome.results.append(main(_own_grid(grid, settings, stop)))
        except BaseException as error:
            outcome.error = error

    return server_main


def _own_grid(grid: "Grid", settings: EngineSettings, stop: threading.Event) -> "Grid":
    """Return a grid that ends with the runtime, and counts each hospital's own time."""
    from fl_sim.engine.stoppable import StoppableGrid
    from fl_sim.engine.through import OwnTimeGrid

    def at_once() -> int:
        return hospitals_at_once(settings)

    return OwnTimeGrid(StoppableGrid(grid, stop, at_once), at_once)


def hospitals_at_once(settings: EngineSettings) -> int:
    """Return how many hospitals Flower lets work at once; 1 while Ray is not there, or not well."""
    import ray
    from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

    if not ray.is_initialized():
        return 1
    # As many threads feed the actors as Python's pools have by default.
    threads = min(32, (os.cpu_count() or 1) + 4)
    try:
        return min(threads, pool_size_from_resources(backend_config(settings)["client_resources"]))
    except Exception:  # a Ray that has died is told of where messages are exchanged
        return 1


@contextmanager
def _interruptible(stop: threading.Event) -> Iterator[list[int]]:
    """Let Ctrl-C, SIGTERM and SIGHUP set ``stop``, and be noted in the list that is yielded.

    A second one ends the process; SIGTERM and SIGHUP do so after some seconds by themselves. A
    KeyboardInterrupt in the middle of Flower's runtime would shut Ray down under threads that wait
    for it, and they would keep the process alive for ever.
    """
    received: list[int] = []
    leaving = threading.Timer(_PATIENCE_SECONDS, leave)
    leaving.daemon = True

    def on_signal(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)  # Ray's processes are cleared by what watches this one
        received.append(number)
        stop.set()
        if number == signal.SIGINT:
            _log.warning("Waiting for the hospitals at work; press Ctrl-C again to leave at once.")
        else:
            leaving.args = ["Interrupted", 128 + number]
            leaving.start()

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread can handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    # What ends a process at once, or is ignored as under nohup, stays so.
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        leaving.cancel()
        for number, handler in handled.items():
            signal.signal(number, handler)


ENGINES.register("ray", "hospitals in parallel processes, here or on a cluster")(run_ray)
