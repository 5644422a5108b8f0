"""Files on disk: whole or not at all, durable, and one process at a time."""

import errno
import fcntl
import glob
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fl_sim.errors import FlSimError, printable

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EFBIG: "files may not become so large",
    errno.EIO: "the disk reports an error",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOLCK: "the file system cannot lock files",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.\d+", re.DOTALL)


class WriteError(FlSimError, OSError):
    """A file that cannot be written: which, why, and what to do, in one sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


def briefly(path: Path) -> str:
    """Return a path for people: as seen from the working directory where it lies in it."""
    here = Path.cwd()
    inside = path.is_absolute() and path.is_relative_to(here)
    return printable(str(path.relative_to(here) if inside else path))


def reason(error: OSError) -> str | None:
    """Say in words why the system refused to write; ``None`` for errors of another kind."""
    return _REASONS.get(error.errno or 0)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Describe in one sentence what keeps the enclosed block from writing a file.

    Raises:
        WriteError: for what the system refuses.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        why = reason(error) or error.strerror or str(error)
        told = WriteError(
            f"The file {path} cannot be written: {why}; mend that, and the same command continues "
            "where it stopped."
        )
        told.errno, told.strerror = error.errno, why
        raise told from error


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> Path:
    """Write a file so that it is there whole or not at all, and on disk when this returns.

    A process that is killed meanwhile leaves a file ``.<name>.<process>.<thread>`` beside it; see
    :func:`sweep_temporaries`.

    Args:
        path: of the file; folders are made where missing.
        content: of the file.
        private: whether only its owner may read it, from its first byte on (mode 0600).

    Returns:
        ``path``.

    Raises:
        WriteError: if it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", opener=_open_private if private else None) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return path


def _open_private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    os.fchmod(handle, 0o600)  # also where a killed process left the file
    return handle


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a renamed file may else have its old name after a crash.

    File systems that cannot do it are left alone.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sweep_temporaries(paths: Iterable[Path], spare_living: bool = False) -> None:
    """Remove what killed calls of :func:`write_atomically` left among these paths, nothing else.

    Args:
        paths: files, for example a folder's; nobody may be writing beside them.
        spare_living: leave the files of processes that live on this machine, where others may be
            writing.
    """
    for path in paths:
        named = _TEMPORARY.fullmatch(path.name)
        if named is None or (spare_living and _lives(int(named["process"]))):
            continue
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold off other processes by a lock file; the system frees it when the process dies.

    Raises:
        WriteError: if the lock file cannot be made or locked.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    with file, kept_from_children(file):
        with writing(path):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


_kept: set[IO[bytes]] = set()


@contextmanager
def kept_from_children(file: IO[bytes]) -> Iterator[None]:
    """Close a locked file in children that are forked meanwhile.

    A lock lasts as long as anybody has the file open; those that another program replaces lose it
    by themselves.
    """
    _kept.add(file)
    try:
        yield
    finally:
        _kept.discard(file)


def _close_in_child() -> None:
    for file in _kept:
        with suppress(OSError):
            file.close()
    _kept.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def built_once(path: Path) -> Iterator[None]:
    """Hold the lock beside a file that several processes want and one of them makes.

    What a killed process left of it is swept first.

    Raises:
        WriteError: if the lock file cannot be made.
    """
    with locked(path.with_suffix(".lock")):
        sweep_temporaries(path.parent.glob(f".{glob.escape(path.stem)}.*"))
        yield


def checksum(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Stand:
    """How far a file that only grows had come: its first bytes, which stay as they were.

    Args:
        size: bytes.
        sha256: of these bytes, as hexadecimal digits.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Stand":
        """Return how far a file has come; a missing one has no bytes."""
        content = path.read_bytes() if path.exists() else b""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def begins(self, path: Path) -> bool:
        """Whether a file begins so."""
        size = path.stat().st_size if path.is_file() else 0
        if not 0 <= self.size <= size:
            return False
        content = path.read_bytes()[: self.size] if size else b""
        return hashlib.sha256(content).hexdigest() == self.sha256

    def cut(self, path: Path) -> None:
        """Cut off what was added since.

        Raises:
            FlSimError: if the file does not begin so.
        """
        if not self.begins(path):
            raise FlSimError(f"The file {path} is not as it had been written.")
        if path.exists() and path.stat().st_size > self.size:
            cut(path, self.size)


def cut(path: Path, size: int) -> None:
    """Cut a file to its first ``size`` bytes, durably."""
    with writing(path), open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
