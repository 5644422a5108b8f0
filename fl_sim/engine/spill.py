"""Arrays of messages on disk instead of in memory, read when they are asked for."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl_sim.errors import FlSimError

Part = Callable[[int, int], NDArray[np.generic]]
_HEADER = 1 << 16  # of numpy.save's format, with room to spare


class Late(Array):
    """A Flower array whose bytes are made anew each time that they are asked for.

    Args:
        dtype, shape, stype: as Flower has them; what the bytes are said to be.
        load: makes the bytes.
        part: makes elements ``start`` to ``stop`` of the flattened array; where there is none, it
            is read whole for that.
    """

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        stype: str,
        load: Callable[[], bytes],
        part: Part | None = None,
    ) -> None:
        self.dtype, self.shape, self.stype = dtype, shape, stype
        self._load = load
        self._part = part

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes."""
        return self._load()

    def part(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return some elements of the flattened array."""
        if self._part is not None:
            return self._part(start, stop)
        return self.numpy().reshape(-1)[start:stop]


def part_of(array: Array, start: int, stop: int) -> NDArray[np.generic]:
    """Return elements ``start`` to ``stop`` of a flattened array, reading no more if possible."""
    if isinstance(array, Late):
        return array.part(start, stop)
    return _elements(len(array.data), lambda size, at: array.data[at : at + size], start, stop)


def widened(array: Array) -> Array:
    """Return an array as float64, made when it is asked for.

    Args:
        array: of numbers, serialised by NumPy.
    """

    def load() -> bytes:
        stream = io.BytesIO()
        np.save(stream, array.numpy().astype(np.float64), allow_pickle=False)
        return stream.getvalue()

    def part(start: int, stop: int) -> NDArray[np.generic]:
        return part_of(array, start, stop).astype(np.float64)

    return Late("float64", tuple(array.shape), SType.NUMPY, load, part)


class Spill:
    """A place for a round's uploads: some in memory, the others in a file without a name.

    The file lies in Python's temporary folder (``TMPDIR``). It has no name, so nothing of it is
    left when this is closed or the process ends, however it ends.

    Args:
        memory: bytes that :meth:`keep` leaves where they are before it writes.
    """

    def __init__(self, memory: int = 0) -> None:
        self._memory = memory
        self._file: Any = None
        self._end = 0

    @property
    def on_disk(self) -> int:
        """Bytes that were written."""
        return self._end

    def keep(self, record: ArrayRecord) -> ArrayRecord:
        """Return a record that is the same whenever it is read, in memory while there is room."""
        size = record_bytes(record)
        if size <= self._memory:
            self._memory -= size
            return record
        return self.store(record)

    def store(self, record: ArrayRecord) -> ArrayRecord:
        """Return a record that is the same whenever it is read, on disk.

        Raises:
            FlSimError: if it cannot be written.
        """
        stored = ArrayRecord()
        for name, array in record.items():
            # What is late lies on disk already.
            stored[name] = array if isinstance(array, Late) else self._stored(array)
        return stored

    def store_all(self, content: RecordDict) -> None:
        """Put a message's arrays on disk; the content is changed in place."""
        for key, record in list(content.items()):
            if isinstance(record, ArrayRecord):
                content[key] = self.store(record)

    def close(self) -> None:
        """Give the disk back; what was stored can no longer be read."""
        if self._file is not None:
            self._file.close()

    def _stored(self, array: Array) -> Array:
        data, start = array.data, self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
            done = 0
            while done < len(data):  # a single call writes 2 GB at most
                done += os.pwrite(self._file.fileno(), memoryview(data)[done:], start + done)
        except OSError as error:
            raise FlSimError(
                f"An upload cannot be kept in {tempfile.gettempdir()}: "
                f"{error.strerror or error}; set TMPDIR to a folder with more room."
            ) from error
        size = len(data)
        self._end += size

        def read(length: int, offset: int) -> bytes:
            return self._read(length, start + offset)

        return Late(
            array.dtype,
            array.shape,
            array.stype,
            lambda: read(size, 0),
            lambda first, last: _elements(size, read, first, last),
        )

    def _read(self, length: int, offset: int) -> bytes:
        if self._file.closed:
            raise FlSimError("An upload is read after its round has ended.")
        pieces, done = [], 0
        while done < length:
            piece = os.pread(self._file.fileno(), length - done, offset + done)
            if not piece:
                raise FlSimError(f"The temporary file in {tempfile.gettempdir()} was cut short.")
            pieces.append(piece)
            done += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def record_bytes(record: ArrayRecord) -> int:
    """Return how many bytes of memory a record's arrays take; those that are late take none."""
    return sum(0 if isinstance(array, Late) else len(array.data) for array in record.values())


def content_bytes(content: RecordDict) -> int:
    """Return how many bytes of memory the arrays of a message take."""
    return sum(record_bytes(record) for record in content.array_records.values())


def require_disk(needed: float, what: str) -> None:
    """Refuse what would fill the temporary folder's disk.

    Args:
        needed: bytes.
        what: needs them; the sentence's beginning.

    Raises:
        FlSimError: if less is free.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise FlSimError(
            f"{what} up to {needed / 1e9:.1f} GB on disk, and {tempfile.gettempdir()} has "
            f"{free / 1e9:.1f} GB; set TMPDIR to a folder with more, or take a smaller cohort."
        )


def _elements(
    size: int, read: Callable[[int, int], bytes], start: int, stop: int
) -> NDArray[np.generic]:
    """Read elements of a flattened array out of what ``numpy.save`` wrote."""
    stream = io.BytesIO(read(min(size, _HEADER), 0))
    np.lib.format.read_magic(stream)
    _, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:  # its elements lie in another order
        whole = cast(NDArray[np.generic], np.load(io.BytesIO(read(size, 0)), allow_pickle=False))
        return whole.reshape(-1)[start:stop]
    length = (stop - start) * dtype.itemsize
    return np.frombuffer(read(length, stream.tell() + start * dtype.itemsize), dtype)
