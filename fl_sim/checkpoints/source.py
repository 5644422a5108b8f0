"""A file, or bytes, read at places within its bounds only, whatever its content claims."""

from pathlib import Path
from typing import BinaryIO

_BUFFER = 1 << 14


class Damaged(ValueError):
    """A file is not what its own structure says; the words continue "cannot be read: "."""


class Source:
    """Bytes of a file, or of memory, by place.

    Args:
        file: open for reading, and seekable.
        size: bytes from ``start`` on that belong to it.
        start: place of its first byte in the file.
    """

    def __init__(self, file: BinaryIO, size: int, start: int = 0) -> None:
        self.file, self.size, self.start = file, size, start

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> "Source":
        """Return the whole of an open file."""
        return cls(file, path.stat().st_size)

    def part(self, start: int, size: int) -> "Source":
        """Return the source of a part of it.

        Raises:
            Damaged: if it does not lie within.
        """
        self._check(start, size)
        return Source(self.file, size, self.start + start)

    def read(self, start: int, size: int) -> bytes:
        """Return bytes.

        Raises:
            Damaged: if they do not lie within.
        """
        self._check(start, size)
        self.file.seek(self.start + start)
        content = self.file.read(size)
        if len(content) != size:
            raise Damaged("it became shorter while it was read")
        return content

    def fill(self, start: int, size: int) -> bytearray:
        """Return bytes that may be written to, without a second copy of them."""
        self._check(start, size)
        content = bytearray(size)
        self.file.seek(self.start + start)
        if self.file.readinto(content) != size:  # type: ignore[attr-defined]
            raise Damaged("it became shorter while it was read")
        return content

    def head(self, size: int) -> bytes:
        """Return its first bytes, as many as there are."""
        return self.read(0, min(size, self.size))

    def stream(self, start: int = 0) -> "Stream":
        """Return a file-like view from a place on."""
        self._check(start, 0)
        return Stream(self, start)

    def _check(self, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > self.size:
            raise Damaged(f"it ends at byte {self.size}, and {size} bytes are due at byte {start}")


class Stream:
    """What ``pickletools`` reads from; a length that lies asks for no memory."""

    def __init__(self, source: Source, place: int) -> None:
        self.source, self.place = source, place
        self.held, self.begin = b"", place

    def tell(self) -> int:
        """Return the place of the next byte in the source."""
        return self.place

    def read(self, size: int) -> bytes:
        """Return the next bytes, as many as there are."""
        size = max(0, min(size, self.source.size - self.place))
        first = self.place - self.begin
        if first + size > len(self.held):
            if size > _BUFFER:
                self.place += size
                return self.source.read(self.place - size, size)
            self._load()
            first = 0
        self.place += size
        return self.held[first : first + size]

    def readline(self) -> bytes:
        """Return the next line with its end."""
        parts = []
        while self.place < self.source.size:
            self._load()
            end = self.held.find(b"\n") + 1
            parts.append(self.held[:end] if end else self.held)
            self.place += len(parts[-1])
            if end:
                break
        return b"".join(parts)

    def _load(self) -> None:
        self.begin = self.place
        self.held = self.source.read(self.place, min(_BUFFER, self.source.size - self.place))
