"""What a killed run would leave of Ray: its processes, and its files in /tmp and /dev/shm.

Ray's daemons notice within seconds that the program which started them is gone, some of its agents
never do, and its session folder stays for good. So every Ray that is started here has a folder of
its own, and a small process, this file, that waits for the end of the program and then clears up.
Whatever kills that one too leaves the folder to the next start.

This runs without the rest of the program, on the standard library alone.
"""

import fcntl
import os
import shutil
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

LOCK = "lock"
ENDED = "ended"
"""A file of this name says that the program itself has said how it ended."""
_KILLED = "The run was killed, or its engine under it; the same command continues where it stopped."
MARK = "FL_SIM_SESSION"
"""Environment variable of every process of a session; its value is the session's folder."""
SHARED_MEMORY = Path("/dev/shm")
_PATIENCE_SECONDS = 30.0


def shared_memory_of(folder: Path) -> Path:
    """Return the folder in shared memory that belongs to a session's folder."""
    return SHARED_MEMORY / folder.name


def clear(folder: Path) -> None:
    """Kill the processes that a session has started and remove its files. Its lock must be held.

    Args:
        folder: of the session.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    # A dying daemon may start another process, so look again until there is none.
    while (found := processes(folder)) and time.monotonic() < end:
        for process in found:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(shared_memory_of(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def processes(folder: Path) -> list[int]:
    """Return the processes of a session: those with its mark, or that write to one of its files.

    Ray's processes write a title over their environment, and their output to the session's folder.
    """
    spared = {os.getpid(), _starter(folder)}
    numbers = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [n for n in numbers if n not in spared and _belongs(Path("/proc", str(n)), folder)]


def _starter(folder: Path) -> int:
    """Return the process that has started a session, and that may have its log still open."""
    try:
        return int((folder / LOCK).read_text())
    except (OSError, ValueError):
        return 0


def _belongs(process: Path, folder: Path) -> bool:
    try:
        if f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
            return True
        return any(_writes(descriptor, folder) for descriptor in (process / "fd").iterdir())
    except OSError:  # it has ended, or is another user's
        return False


def _writes(descriptor: Path, folder: Path) -> bool:
    with suppress(OSError):
        inside = os.readlink(descriptor).startswith(f"{folder}/")
        return inside and bool(descriptor.lstat().st_mode & stat.S_IWUSR)
    return False


def main(folder: Path) -> None:
    """Wait until nobody holds a session's lock, and clear the session.

    Says how to go on where the program had no time to: some ends of Ray take it along.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the program that this one outlives
    with suppress(FileNotFoundError), open(folder / LOCK, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ENDED).exists():
            with suppress(OSError):  # the terminal may be gone
                print(_KILLED, file=sys.stderr, flush=True)
        clear(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
