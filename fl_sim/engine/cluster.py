"""Ray, started for one run and gone with it, or joined where it runs already."""

import logging
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fl_sim.engine import reaper
from fl_sim.engine.session import cleared, locked_folder, sweep
from fl_sim.errors import FlSimError

STARTS = 3
"""How often Ray is started: a busy machine may exceed its own patience of 30 seconds."""
DAEMON_DIED = 2
"""Exit status where Ray is killed under the program."""
_DAEMONS = ("raylet", "gcs_server")
_WATCH_SECONDS = 0.2
_UNWINDING_SECONDS = 0.2
_PREFIX = "fl-sim-ray-"
_LONGEST = 39
"""Characters of a session's folder: Ray's sockets lie in it, and Linux allows them 107."""
_LEFT_BEHIND = ("PYTHONPATH", "PYTHONBREAKPOINT")  # set by Flower and Ray and never taken back


@contextmanager
def ray_running(
    address: str | None,
    variables: Mapping[str, str],
    verbose: bool = False,
    received: Sequence[int] = (),
    **arguments: Any,
) -> Iterator[None]:
    """Start Ray on this machine for the enclosed block, or join a cluster.

    Where this process has joined a Ray already, that is used, and goes on. One that is started
    here leaves no process and no file behind, even if this process is killed.

    Args:
        address: of a running cluster, for example ``"auto"`` or ``"ray://head:10001"``.
        variables: of the environment of Ray's processes.
        verbose: show Ray's own messages.
        received: signals that this process is ending for; others may have come to Ray, too.
        arguments: further ones for ``ray.init``.

    Raises:
        FlSimError: if Ray cannot be started, in three attempts, or joined.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with _environment(variables):
        if address is None:
            with _started(verbose, received, arguments):
                yield
            return
        try:
            _init(address, verbose, {**arguments, "runtime_env": {"env_vars": dict(variables)}})
        except Exception as error:
            ray.shutdown()
            raise FlSimError(f"Ray at {address} could not be joined: {root(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _started(verbose: bool, received: Sequence[int], arguments: dict[str, Any]) -> Iterator[None]:
    sweep_sessions()
    for attempt in range(1, STARTS + 1):
        with _session() as folder:
            error = _attempt(folder, verbose, arguments)
            if error is None:
                with _guarded(folder, received):
                    yield
                return
        if attempt == STARTS:
            why = str(root(error)).rstrip(".")
            raise FlSimError(
                f"Ray could not be started: {why}; where the machine is too busy for it, do "
                f'without: --workers 0, or engine = "inprocess" in a federation.'
            ) from error
        print(
            f"Ray did not start ({root(error)}); trying again ({attempt + 1} of {STARTS}).",
            file=sys.stderr,
            flush=True,
        )


def _attempt(folder: Path, verbose: bool, arguments: dict[str, Any]) -> Exception | None:
    """Start Ray in a session's folder; return what went wrong."""
    place: dict[str, Any] = {"_temp_dir": str(folder / "ray")}
    memory = reaper.shared_memory_of(folder)
    if memory.is_dir():
        place["_plasma_directory"] = str(memory)
    try:
        _init(None, verbose, {"include_dashboard": False, **arguments, **place})
    except BaseException as error:
        _shut_down()
        if not isinstance(error, Exception):
            raise
        return error
    return None


def _init(address: str | None, verbose: bool, arguments: dict[str, Any]) -> None:
    import ray

    with _handlers_kept():
        ray.init(
            # Without an address Ray would join any cluster that runs on this machine.
            address=address or "local",
            logging_level=logging.INFO if verbose else logging.ERROR,
            log_to_driver=verbose,
            **arguments,
        )


@contextmanager
def _guarded(folder: Path, received: Sequence[int]) -> Iterator[None]:
    """Shut Ray down at the block's end; say so, and end, if one of its daemons dies before.

    Ray ends this process a few seconds later, without a word, wherever it is.
    """
    import ray

    daemons = _daemons(folder)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            for descriptor in select.select(list(daemons), [], [], 0)[0]:
                # Flower may have shut it down; or this process is on its way out by itself.
                if not ray.is_initialized() or done.wait(_UNWINDING_SECONDS):
                    return
                if received:
                    leave("Interrupted", 128 + received[0])
                leave(f"Ray's {daemons[descriptor]} has died, and Ray with it", DAEMON_DIED)

    guard = threading.Thread(target=watch, daemon=True)
    guard.start()
    try:
        yield
    finally:
        done.set()
        guard.join()
        for descriptor in daemons:
            os.close(descriptor)
        _shut_down()


def _daemons(folder: Path) -> dict[int, str]:
    """Return the names of Ray's daemons, by a descriptor that can be read once they have died."""
    found = {}
    for number in reaper.processes(folder):
        process = Path(f"/proc/{number}")
        with suppress(OSError):
            name = (process / "exe").readlink().name
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            # A worker that the raylet has just forked has its name still.
            if name in _DAEMONS and parent == os.getpid():
                found[os.pidfd_open(number)] = name
    return found


def leave(why: str, status: int) -> NoReturn:
    """End this process at once, in one sentence; Ray's are cleared by what watches it."""
    with suppress(OSError):
        print(f"{why}; the same command continues where it stopped.", file=sys.stderr, flush=True)
        sys.stdout.flush()
    with suppress(OSError, KeyError):
        Path(os.environ[reaper.MARK], reaper.ENDED).touch()
    os._exit(status)


def _shut_down() -> None:
    import ray

    with suppress(Exception):  # what is left of it is cleared with its session
        ray.shutdown()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Take back Ray's own answer to SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _session() -> Iterator[Path]:
    """Make a folder for one Ray and, at the end, clear it and every process of it."""
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(str(place)) + len(_PREFIX) + 8 > _LONGEST:
        place = Path("/tmp")
    folder, lock = locked_folder(place, _PREFIX)
    with cleared(folder, lock):
        if _memory_suffices():
            reaper.shared_memory_of(folder).mkdir(mode=0o700)
        yield folder


def sweep_sessions() -> None:
    """Clear the sessions of processes that were killed together with what watched them."""
    for place in {os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp"}:
        sweep(Path(place), _PREFIX)


def _memory_suffices() -> bool:
    """Whether shared memory has room for the largest store of objects that Ray would choose."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return shutil.disk_usage(reaper.SHARED_MEMORY).free > 0.3 * memory
    except OSError:
        return False


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set what Ray's processes inherit, and take back what Flower and Ray leave in this one."""
    wanted = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a notice; hospitals ask for devices
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in (*wanted, *variables, *_LEFT_BEHIND)}
    os.environ |= {name: os.environ.get(name, value) for name, value in wanted.items()}
    os.environ |= variables
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
