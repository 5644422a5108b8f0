"""One run a folder: who comes second waits, and finds the work done."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fl_sim.errors import FlSimError
from fl_sim.files import kept_from_children, writing

LOCK = ".run.lock"
_POLL_SECONDS = 0.1

_claimed: dict[tuple[int, int], int] = {}
"""The thread that holds a folder, by the lock file's device and number, in this process."""


@contextmanager
def claimed(folder: Path, work: str) -> Iterator[None]:
    """Keep a folder for this run; the system frees it when the process dies, however it dies.

    Where another process or thread does the same work in it, this waits for its end, and says so
    in one line. A folder that is new and holds nothing at the end is removed.

    Args:
        folder: made where missing.
        work: what is done in it, for example a scenario's name and seed.

    Raises:
        FlSimError: if other work is done in the folder now, or by this very thread.
        WriteError: if the folder cannot be written.
    """
    path, new = folder / LOCK, not folder.exists()
    with _taken(path, work) as file, kept_from_children(file):
        place = _place(file)
        _claimed[place] = threading.get_ident()
        try:
            with writing(path):
                _note(file, work)
            yield
        finally:
            del _claimed[place]
            with suppress(OSError):
                file.truncate(0)
                if new and os.listdir(folder) == [LOCK]:
                    path.unlink()
                    folder.rmdir()


def _taken(path: Path, work: str) -> IO[bytes]:
    """Return the lock file, open and locked."""
    said = False
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b")  # noqa: SIM115
            if _locked(file, path):
                return file
        with file:
            said = _refuse_or_say(path, file, work, said)
        time.sleep(_POLL_SECONDS)


def _locked(file: IO[bytes], path: Path) -> bool:
    """Whether the file could be locked, and is still the one of that name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _place(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _refuse_or_say(path: Path, file: IO[bytes], work: str, said: bool) -> bool:
    """Look at who holds the lock; returns whether the user has been told that this waits."""
    if _claimed.get(_place(file)) == threading.get_ident():
        raise FlSimError(
            f"The folder {path.parent} is in use by this very thread, which would wait for itself "
            "for ever; let that run end first."
        )
    holder = _holder(file)
    if holder is None:  # has it since a moment
        return said
    if _is_gone(holder):  # a child of it closes the file in a moment
        return said
    if holder["work"] != work:
        raise FlSimError(
            f"In the folder {path.parent} process {holder['process']} on {holder['host']} runs "
            f"{holder['work']}; give another folder, or wait for its end."
        )
    if not said:
        print(
            f"Process {holder['process']} on {holder['host']} runs this in {path.parent} since "
            f"{holder['since']}; waiting for its end.",
            file=sys.stderr,
            flush=True,
        )
    return True


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether a process of this machine has ended that is noted as the holder."""
    if holder["host"] != socket.gethostname() or not isinstance(holder["process"], int):
        return False
    return not Path(f"/proc/{holder['process']}").exists()


def _note(file: IO[bytes], work: str) -> None:
    content = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "work": work,
    }
    file.truncate(0)
    file.write(json.dumps(content).encode())
    file.flush()


def _holder(file: IO[bytes]) -> dict[str, object] | None:
    try:
        file.seek(0)
        content = json.loads(file.read(4096))
        return {name: content[name] for name in ("process", "host", "since", "work")}
    except (ValueError, LookupError, TypeError):
        return None
