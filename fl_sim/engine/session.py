"""A folder for what a run starts: processes and files are gone with the run, however it ends."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fl_sim.engine import reaper
from fl_sim.files import kept_from_children, writing

_ABANDONED_SECONDS = 60.0


def locked_folder(place: Path, prefix: str) -> tuple[Path, Any]:
    """Make a folder that nobody else may read, and lock it for this process's life.

    Args:
        place: folder that it is made in.
        prefix: of its name.

    Returns:
        The folder and its lock file; whoever gets that lock may clear the folder.
    """
    while True:
        with writing(place):
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            lock = open(folder / reaper.LOCK, "wb")  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(str(os.getpid()).encode())
            lock.flush()
        if (folder / reaper.LOCK).exists():
            return folder, lock
        lock.close()  # another process took it for abandoned


@contextmanager
def cleared(folder: Path, lock: Any) -> Iterator[None]:
    """Mark the processes that the enclosed block starts; at its end clear them and the folder.

    A small process of its own does that, so that it is done even if this one is killed.

    Args:
        folder: of the session, from :func:`locked_folder`.
        lock: its lock file, which is closed at the end.
    """
    with kept_from_children(lock):
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(folder)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # not killed with this one's group
        )
        os.environ[reaper.MARK] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(reaper.MARK, None)
            with suppress(OSError):
                (folder / reaper.ENDED).touch()
            lock.close()
            watcher.wait()
    if folder.exists():  # somebody killed the watcher
        reaper.main(folder)


def sweep(place: Path, prefix: str) -> None:
    """Clear the sessions of processes that were killed together with what watched them.

    Args:
        place: folder that they lie in.
        prefix: of their names.
    """
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            if not (folder / reaper.LOCK).exists():
                if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                    reaper.clear(folder)
                continue
            with open(folder / reaper.LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                reaper.clear(folder)
