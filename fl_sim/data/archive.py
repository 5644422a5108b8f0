"""Arrays of an .npz file: what its headers claim is checked before any memory is asked for.

NumPy reads an array's header and believes it. A header of a hundred bytes may claim terabytes, and
a megabyte of deflated zeros is a gigabyte; so a claim is compared with its record's size, and the
record's size with the bytes that are there.
"""

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError, printable

_LONGEST_HEADER = 1024
_ALWAYS_ALLOWED = 64 << 20
_MOST_EXPANSION = 200
"""Bytes that a compressed byte may become, beyond the first 64 MiB; images become about 10."""

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class ArrayHeader:
    """What a record says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Of the array, in Python's integers, which do not overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


class Archive:
    """An open .npz file.

    Args:
        archive: the zip archive.
        refuse: raises the error of this file for a problem in words.
    """

    def __init__(self, archive: zipfile.ZipFile, refuse: Callable[[str], None]) -> None:
        self._archive = archive
        self._refuse = refuse
        self._records = {info.filename: info for info in archive.infolist()}

    def headers(self, names: Sequence[str]) -> dict[str, ArrayHeader]:
        """Read the headers of arrays, and no more than that.

        Raises:
            FlSimError: if an array is missing, holds objects, or claims what its record does not
                hold.
        """
        missing = [name for name in names if f"{name}.npy" not in self._records]
        if missing:
            self._refuse(f"it lacks the array '{missing[0]}'")
        return {name: self._header(name) for name in names}

    def array(self, name: str) -> NDArray[Any]:
        """Read an array whose header was read before; its checksum too.

        Raises:
            FlSimError: if its record is damaged.
        """
        with self._archive.open(f"{name}.npy") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # reading to the end checks the record's checksum
                self._refuse(f"{name} is followed by further bytes")
        return array

    def _header(self, name: str) -> ArrayHeader:
        info = self._records[f"{name}.npy"]
        if info.compress_type not in _COMPRESSIONS or info.flag_bits & 1:
            self._refuse(f"{name} is encrypted, or compressed in a way that NumPy does not write")
        with self._archive.open(info) as file:
            header, start = _parsed(file)
        if header.dtype.hasobject:
            self._refuse(f"{name} holds Python objects instead of numbers")
        if any(side < 0 for side in header.shape):
            self._refuse(f"{name} claims the impossible shape {list(header.shape)}")
        if header.nbytes != info.file_size - start:
            self._refuse(
                f"{name} claims {header.nbytes} bytes, but its record has {info.file_size - start}"
            )
        if info.file_size > max(_ALWAYS_ALLOWED, _MOST_EXPANSION * info.compress_size):
            self._refuse(
                f"{name} would grow from {info.compress_size} bytes to {info.file_size}, which no "
                f"images do"
            )
        return header


@contextmanager
def open_archive(path: Path, problem: Callable[[str], FlSimError]) -> Iterator[Archive]:
    """Open an .npz file; whatever NumPy and zipfile meet in a broken one is one sentence.

    Args:
        path: of the file.
        problem: builds the error of this file for a problem in words.
    """

    def refuse(words: str) -> None:
        raise problem(words)

    try:
        # Opened here so that no file handle is left behind when the content is not a zip.
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            yield Archive(archive, refuse)
    except FlSimError:
        raise
    except Exception as error:
        said = printable(str(error).partition("\n")[0])[:200] or type(error).__name__
        raise problem(f"it is damaged or not an .npz file ({said})") from None


def _parsed(file: IO[bytes]) -> tuple[ArrayHeader, int]:
    """Return a record's header and where its data begin."""
    # A copy of the first bytes, since a header may claim to be gigabytes long.
    head = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(head)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"NumPy's format {version[0]}.{version[1]} is not known")
    shape, _, dtype = readers[version](head)
    return ArrayHeader(tuple(shape), dtype), head.tell()
