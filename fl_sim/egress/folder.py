"""The folder that leaves: written whole or not at all, and verified without a network.

``checksums.sha256`` has the SHA-256 of every other file but the signature, as ``sha256sum -c``
reads it. The record names the hashes of the model's files and carries a seal of its own. None of
this stops somebody who rewrites all of it: against him stand a signature with the owner's key, and
the record's SHA-256, which the owner keeps.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_sim.egress.record import LONGEST, RECORD, Record, read_record
from fl_sim.egress.signing import SIGNATURE, require_signature
from fl_sim.errors import FlSimError, legible
from fl_sim.files import briefly, checksum, sync_folder, write_atomically, writing

CHECKSUMS = "checksums.sha256"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_MOST_FILES = 1000


@dataclass(frozen=True)
class Verified:
    """A folder that is as it was written.

    Args:
        record: of the decision.
        sha256: of the record's file, to be compared with the owner's copy.
        files: how many were checked.
        signed: whether a signature was checked with the owner's public key.
        unchecked_signature: whether there is one that nobody gave a key for.
    """

    record: Record
    sha256: str
    files: int
    signed: bool
    unchecked_signature: bool


def require_new(folder: Path, what: str) -> None:
    """Refuse a folder that is there.

    Raises:
        FlSimError: naming it.
    """
    if os.path.lexists(folder):
        raise FlSimError(f"The {what} {briefly(folder)} is there already; name another one.")


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder so that it is there whole or not at all.

    Args:
        folder: must not be there.
        write: writes its content into the folder that it is given.

    Raises:
        FlSimError: if it is there.
    """
    require_new(folder, "folder")
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with writing(folder):
        try:
            staged.mkdir(parents=True)
            write(staged)
            for path in staged.rglob("*"):
                if path.is_dir():
                    sync_folder(path)
            sync_folder(staged)
            require_new(folder, "folder")
            os.rename(staged, folder)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync_folder(folder.parent)
    return folder


def write_checksums(folder: Path) -> None:
    """Write the checksums of everything that a folder holds."""
    lines = [f"{checksum(folder / name)}  {name}\n" for name in _names(folder)]
    write_atomically(folder / CHECKSUMS, "".join(lines).encode())


def verify(
    folder: Path | str, /, *, key: Path | str | None = None, expect: str | None = None
) -> Verified:
    """Verify a folder that ``fl-sim release`` wrote; nothing in it is run, no network is asked.

    Args:
        folder: that came.
        key: the owner's public key (PEM), where it is signed.
        expect: the record's SHA-256, as its owner told it by other means.

    Raises:
        FlSimError: for the first thing that is not as it was written.
    """
    folder = Path(folder)
    shown = legible(briefly(folder))
    if not folder.is_dir():
        raise FlSimError(f"The folder {shown} does not exist.")
    stated = _stated(folder)
    names = _names(folder)
    if missing := sorted(set(stated) - set(names)):
        raise FlSimError(f"The folder {shown} lacks the file {legible(missing[0])}.")
    if added := sorted(set(names) - set(stated)):
        raise FlSimError(f"The folder {shown} has a file that nobody stated: {legible(added[0])}.")
    for name, wanted in stated.items():
        if checksum(folder / name) != wanted:
            raise FlSimError(f"The file {legible(name)} of {shown} is not as it was written.")
    content = _bounded(folder / RECORD, LONGEST)
    sha256 = hashlib.sha256(content).hexdigest()
    if expect is not None and sha256 != expect.lower():
        raise FlSimError(f"The record of {shown} is not the one that its owner has.")
    record = read_record(content, f"The record of {shown}")
    _require_bound(record, stated, shown)
    there = (folder / SIGNATURE).is_file()
    if key is not None:
        require_signature(folder, Path(key))
    return Verified(record, sha256, len(stated), key is not None, there and key is None)


def _require_bound(record: Record, stated: dict[str, str], shown: str) -> None:
    """Refuse a record that is not of these files."""
    if record.decision != "release":
        raise FlSimError(f"The record of {shown} refuses the model, so it should not have left.")
    if not record.output:
        raise FlSimError(f"The record of {shown} names no model file.")
    for name, wanted in record.output.items():
        if stated.get(name) != wanted:
            raise FlSimError(
                f"The record of {shown} is of another file {legible(name)} than the one in it."
            )


def _names(folder: Path) -> list[str]:
    """Return the files of a folder, but the checksums and the signature.

    Raises:
        FlSimError: for a link, or too many files.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise FlSimError(f"The folder holds {legible(path.name)}, which is no plain file.")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (CHECKSUMS, SIGNATURE):
            found.append(name)
        if len(found) > _MOST_FILES:
            raise FlSimError(f"The folder holds more than {_MOST_FILES} files.")
    return found


def _stated(folder: Path) -> dict[str, str]:
    """Return the checksums that a folder states, by name."""
    path = folder / CHECKSUMS
    if not path.is_file() or not (folder / RECORD).is_file():
        raise FlSimError(
            f"The folder {legible(briefly(folder))} is none that fl-sim release wrote: it has no "
            f"{CHECKSUMS} or no {RECORD}."
        )
    try:
        text = _bounded(path, LONGEST).decode()
    except UnicodeDecodeError:
        raise FlSimError(f"The file {CHECKSUMS} is no text.") from None
    stated = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise FlSimError(f"The file {CHECKSUMS} has a line that is no checksum.")
        stated[found[2]] = found[1]
    return stated


def _bounded(path: Path, most: int) -> bytes:
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FlSimError(f"The file {legible(path.name)} is longer than {most >> 20} MiB.")
    return content
