"""The engine on Ray: Flower's Simulation Runtime, with its rough edges taken off."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fl_sim.engine.base import ENGINES, EngineSettings
from fl_sim.engine.quiet import quiet_flower
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

T = TypeVar("T")
_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_LEFT_BEHIND = ("PYTHONPATH", "PYTHONBREAKPOINT")  # set by Flower and Ray and never taken back


class _Stopped(Exception):
    """The runtime has ended while the server was waiting."""


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
    have finished; a second Ctrl-C leaves at once.

    Raises:
        FlSimError: if Ray cannot be started or lacks the resources for one hospital.
        KeyboardInterrupt: after Ctrl-C, when Ray has ended.
    """
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    _retry_rounds_only()
    stop = threading.Event()
    outcome: _Outcome[T] = _Outcome()
    server_app = ServerApp()
    server_app.main()(_server_main(_on_own_time(main, settings), outcome, stop))
    with quiet_flower(settings.verbose), ray_environment(), _interruptible(stop) as interrupted:
        try:
            run_simulation(
                server_app, client_app, hospitals, backend_config=backend_config(settings)
            )
        except Exception as error:
            # Whatever the server's side raised tells more than the runtime's end.
            if outcome.error is None or isinstance(outcome.error, _Stopped):
                raise FlSimError(f"The Ray engine broke down: {root(error)}") from error
        finally:
            stop.set()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if outcome.error is not None:
        raise outcome.error
    return outcome.results[0]


def backend_config(settings: EngineSettings) -> dict[str, Any]:
    """Return the settings as Flower's Ray backend wants them (JSON values only)."""
    return {
        "init_args": init_args(settings.ray_address, settings.verbose),
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


def init_args(address: str | None, verbose: bool) -> dict[str, Any]:
    """Return arguments for ``ray.init``, to join the cluster at an address or start one quietly."""
    level = logging.INFO if verbose else logging.ERROR
    return {
        # Without an address Ray would join any cluster that runs on this machine.
        "address": address or "local",
        "logging_level": logging.getLevelName(level).lower(),
        "log_to_driver": verbose,
    }


def _retry_rounds_only() -> None:
    """Keep Ray from announcing, at the end of every run, that it will retry the actors' exit."""
    from flwr.simulation.ray_transport.ray_actor import ClientAppActor

    metadata = getattr(ClientAppActor, "__ray_metadata__", None)
    retries = getattr(getattr(metadata, "method_meta", None), "max_task_retries", None)
    if isinstance(retries, dict):
        retries["terminate"] = 0


def _server_main(
    main: "Callable[[Grid], T]", outcome: "_Outcome[T]", stop: threading.Event
) -> "Callable[[Grid, Any], None]":
    import torch

    threads = torch.get_num_threads()

    def server_main(grid: "Grid", context: Any) -> None:
        torch.set_num_threads(threads)
        try:
            outcome.results.append(main(_stoppable(grid, stop)))
        except BaseException as error:
            outcome.error = error

    return server_main


def _stoppable(grid: "Grid", stop: threading.Event) -> "Grid":
    """Make a grid's ``send_and_receive`` end when the runtime has; Flower's would wait for ever."""

    def send_and_receive(
        messages: "Iterable[Message]", *, timeout: float | None = None
    ) -> "Iterable[Message]":
        waiting = set(grid.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            if stop.wait(_POLL_SECONDS):
                raise _Stopped("The Simulation Runtime has ended.")
            arrived = list(grid.pull_messages(waiting))
            replies.extend(arrived)
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    grid.send_and_receive = send_and_receive  # type: ignore[method-assign]
    return grid


def _on_own_time(main: "Callable[[Grid], T]", settings: EngineSettings) -> "Callable[[Grid], T]":
    """Give a server a grid whose time limit counts each hospital's own time."""
    from fl_sim.engine.through import OwnTimeGrid

    return lambda grid: main(OwnTimeGrid(grid, lambda: hospitals_at_once(settings)))


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
def _interruptible(stop: threading.Event) -> Iterator[threading.Event]:
    """Let Ctrl-C set ``stop`` and the event that is yielded; a second one ends the process.

    A KeyboardInterrupt in the middle of Flower's runtime would shut Ray down under threads that
    wait for it, and they would keep the process alive for ever.
    """
    interrupted = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            os._exit(128 + number)  # Ray's processes end with this one
        interrupted.set()
        stop.set()
        _log.warning("Waiting for the hospitals at work; press Ctrl-C again to leave at once.")

    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # only the main thread can handle signals
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ray_environment() -> Iterator[None]:
    """Set what Ray's processes inherit, and take back what Flower and Ray leave in this one."""
    wanted = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a notice; hospitals ask for devices
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in (*wanted, *_LEFT_BEHIND)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def root(error: BaseException) -> BaseException:
    """Return the error that an error came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


ENGINES.register("ray", "hospitals in parallel processes, here or on a cluster")(run_ray)
