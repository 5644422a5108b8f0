"""The payload's byte format: image codes, framed so that damage costs only what it hits.

Layout, little endian::

    header | index | extra | code, CRC-32 | code, CRC-32 | ... | index again | header again

A *header* (44 bytes) has its own CRC-32. The second one starts with the first one's tag reversed
and is found by it, since a carrier that reads all its capacity does not know where a payload ends.

The *index* says how long each code is, in groups of 32 images. A group (8 + 4k bytes) is the offset
of its first code from the payload's start, 32 numbers of ``k`` bits (how much longer than the
shortest code each is; ``k`` is in the header) and a CRC-32. Groups are equally long and state
offsets, so a lost one does not displace the others; each is read from whichever copy is intact.

Each *code* is followed by a CRC-32 that also covers the image's number and its code's length, so no
code can pass for another's.

The cost is 88 bytes, and for each image ``4.5 + k / 4`` (the last group is filled up): at most 8
bytes if the codes' lengths differ by less than 16 kB (k = 14), 6.5 if by less than 256 bytes.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError

ImageDtype = Literal["uint8", "uint16", "float32"]
"""What the images were before they became floats in [0, 1]."""

MAX_IMAGES = 2**24
MAX_SIDE = 4096
MAX_BYTES = 2**32 - 1

_DTYPES: tuple[ImageDtype, ...] = get_args(ImageDtype)
_GROUP = 32
_HEADER = struct.Struct("<4s4B2H5I2fI")
_FRONT, _BACK = b"fLp\x01", b"\x01pLf"  # the last byte of the tag is the format's version
_FREE = 2**16  # a header may always speak of this many images, however short the data
_TRIES = 10_000  # tags that are looked at, so that data full of tags costs no time


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes that were read.

    Args:
        code: as read; shorter than it was if the data ends within.
        intact: whether its CRC-32 is right. A damaged code may still decode to something.
    """

    code: bytes
    intact: bool


@dataclass(frozen=True)
class Header:
    """What a payload says of all its images.

    Args:
        count: number of images.
        shape: channels (1 or 3), height, width.
        dtype: of the original images.
        low: intensity that 0 of a decoded image stands for.
        high: intensity that 1 stands for.
    """

    count: int
    shape: tuple[int, int, int]
    dtype: ImageDtype
    low: float
    high: float


def pack(
    codes: Sequence[bytes],
    shape: tuple[int, int, int],
    dtype: ImageDtype = "uint8",
    low: float = 0.0,
    high: float = 1.0,
    extra: bytes = b"",
) -> bytes:
    """Frame image codes as one payload; see the module for the format.

    Args:
        codes: one an image.
        shape: channels (1 or 3), height and width (1 to 4096) of every image.
        dtype: of the original images.
        low: intensity that 0 of a decoded image stands for; kept as float32.
        high: intensity that 1 stands for.
        extra: whatever else must travel, for example a codec's tables; it is stored once.

    Raises:
        FlSimError: if there are more than 2**24 images, the payload would take 4 GiB, or the shape
            or the range is impossible.
    """
    header = Header(len(codes), shape, dtype, low, high)
    problem = _problem(header)
    if problem:
        raise FlSimError(f"A payload cannot be made: {problem}.")
    lengths = [len(code) for code in codes]
    total = packed_size(lengths, extra)
    if total > MAX_BYTES:
        raise FlSimError(f"A payload of {total} bytes is too large; 4 GiB are the limit.")
    width, shortest = _spread(lengths)
    sizes = _Sizes(len(codes), width, shortest, total, len(extra), zlib.crc32(extra))
    index = _pack_index(lengths, sizes)
    body = [index, extra]
    for number, code in enumerate(codes):
        body += [code, _crc(code, number).to_bytes(4, "little")]
    front, back = (_pack_header(tag, header, sizes) for tag in (_FRONT, _BACK))
    return b"".join([front, *body, index, back])


def packed_size(lengths: Sequence[int], extra: bytes | int = b"") -> int:
    """Return the size of a payload in bytes.

    Args:
        lengths: of the codes, in bytes.
        extra: what travels with them, or its length.
    """
    width, _ = _spread(lengths)
    extra_length = extra if isinstance(extra, int) else len(extra)
    index = _groups(len(lengths)) * _group_bytes(width)
    return 2 * (_HEADER.size + index) + extra_length + sum(lengths) + 4 * len(lengths)


def unpack(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> "Unpacked":
    """Read a payload, however damaged; never an exception, whatever the bytes.

    Args:
        data: a payload, perhaps damaged, cut off, or followed by anything. It is not copied, and
            must not change while the result is used.
    """
    view = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    for tag, position in _tags(view):
        read = _read_header(view, tag, position)
        if read is not None:
            start, header, sizes = read
            images = Images(view, *_read_index(view, start, sizes))
            extra = bytes(_cut(view, start + _HEADER.size + sizes.index, sizes.extra))
            intact = len(extra) == sizes.extra and zlib.crc32(extra) == sizes.extra_crc
            return Unpacked(header, images, extra if intact else None)
    nothing = Images(view, np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Unpacked(None, nothing, None, "No header with a right checksum was found.")


class Images(Sequence[Found | None]):
    """The codes of a payload's images, in the order of packing; ``None`` for one that is lost.

    A code is cut out of the data when it is asked for.
    """

    def __init__(
        self, view: memoryview, offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        self._view = view
        self._offsets = offsets
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Found | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[Found | None]: ...

    def __getitem__(self, index: int | slice) -> Found | list[Found | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if self.reason(number):
            return None
        offset, length = int(self._offsets[number]), int(self._lengths[number])
        code = bytes(_cut(self._view, offset, length))
        check = _cut(self._view, offset + length, 4)
        return Found(code, _crc(code, number).to_bytes(4, "little") == check)

    def reason(self, index: int) -> str | None:
        """Return one sentence on why an image is lost; ``None`` if it is not."""
        offset, length = int(self._offsets[index]), int(self._lengths[index])
        if length < 0:
            return "The index is damaged in both copies where it tells of this image."
        if not 0 <= offset < len(self._view):
            return "The data was cut off before this image."
        return None


@dataclass(frozen=True)
class Unpacked:
    """What was found of a payload.

    Args:
        header: what the payload says of all its images; ``None`` if both copies are lost, and with
            them everything else.
        images: their codes.
        extra: what travelled along; ``None`` if it is damaged.
        problem: one sentence on why there is no header.
    """

    header: Header | None
    images: Images
    extra: bytes | None
    problem: str | None = None


@dataclass(frozen=True)
class _Sizes:
    """The part of a header that says where things are."""

    count: int
    width: int
    shortest: int
    total: int
    extra: int
    extra_crc: int

    @property
    def index(self) -> int:
        return _groups(self.count) * _group_bytes(self.width)

    @property
    def codes(self) -> int:
        """Offset of the first code."""
        return _HEADER.size + self.index + self.extra

    @property
    def second_index(self) -> int:
        """Offset of the second index, at which the codes end."""
        return self.total - _HEADER.size - self.index


def _problem(header: Header) -> str | None:
    channels, height, width = header.shape
    if header.count > MAX_IMAGES:
        return f"{header.count} images are more than {MAX_IMAGES}"
    if channels not in (1, 3) or not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
        return f"images of shape {header.shape} are not 1 or 3 channels of 1 to {MAX_SIDE} pixels"
    if header.dtype not in _DTYPES:
        return f"images are {', '.join(_DTYPES)}, not '{header.dtype}'"
    low, high = np.float32(header.low), np.float32(header.high)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        return f"{header.low} to {header.high} is no range of intensities"
    return None


def _spread(lengths: Sequence[int]) -> tuple[int, int]:
    """Return the bits that a length takes in the index, and the shortest length."""
    shortest = min(lengths, default=0)
    return (max(lengths, default=0) - shortest).bit_length(), shortest


def _groups(count: int) -> int:
    return -(-count // _GROUP)


def _group_bytes(width: int) -> int:
    return 8 + width * _GROUP // 8


def _crc(code: bytes, number: int) -> int:
    return zlib.crc32(code, zlib.crc32(struct.pack("<2I", number, len(code))))


def _group_crc(content: bytes | memoryview, group: int) -> int:
    return zlib.crc32(content, zlib.crc32(struct.pack("<I", group)))


def _pack_header(tag: bytes, header: Header, sizes: _Sizes) -> bytes:
    channels, height, width = header.shape
    content = _HEADER.pack(
        *(tag, _DTYPES.index(header.dtype), channels, sizes.width, 0, height, width),
        *(header.count, sizes.shortest, sizes.total, sizes.extra, sizes.extra_crc),
        *(header.low, header.high, 0),
    )[:-4]
    return content + zlib.crc32(content).to_bytes(4, "little")


def _pack_index(lengths: Sequence[int], sizes: _Sizes) -> bytes:
    groups, offset = [], sizes.codes
    for group in range(_groups(len(lengths))):
        own = lengths[group * _GROUP : (group + 1) * _GROUP]
        bits = sum((length - sizes.shortest) << (sizes.width * i) for i, length in enumerate(own))
        content = offset.to_bytes(4, "little") + bits.to_bytes(sizes.width * _GROUP // 8, "little")
        groups += [content, _group_crc(content, group).to_bytes(4, "little")]
        offset += sum(own) + 4 * len(own)
    return b"".join(groups)


def _tags(view: memoryview) -> Iterator[tuple[bytes, int]]:
    """Return where a header may be: at the front, then wherever there is a tag."""
    yield _FRONT, 0
    for tag in (_BACK, _FRONT):
        for tries, match in enumerate(re.finditer(re.escape(tag), view)):
            if tries == _TRIES:
                break
            yield tag, match.start()


def _read_header(view: memoryview, tag: bytes, position: int) -> tuple[int, Header, _Sizes] | None:
    """Return the payload's start, before the data's own if that is cut off, and what it says."""
    raw = _cut(view, position, _HEADER.size)
    if len(raw) < _HEADER.size or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        return None
    found, dtype, channels, width, zero, *fields, low, high, _ = _HEADER.unpack(raw)
    tall, wide, count, shortest, total, extra, extra_crc = fields
    sizes = _Sizes(count, width, shortest, total, extra, extra_crc)
    if found != tag or zero or dtype >= len(_DTYPES) or width > 32:
        return None
    header = Header(count, (channels, tall, wide), _DTYPES[dtype], low, high)
    room = sizes.second_index - sizes.codes
    # Else a forged header could make millions of images out of nothing.
    too_many = count > max(_FREE, len(view) // 4)
    if _problem(header) or too_many or room < count * (shortest + 4):
        return None
    start = position if tag == _FRONT else position + _HEADER.size - total
    return start, header, sizes


def _read_index(
    view: memoryview, start: int, sizes: _Sizes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each code begins in the data and its length, -1 where unknown.

    Codes of different groups never overlap, so that all of them together are no larger than the
    data, however the index was forged.
    """
    offsets = np.zeros(sizes.count, np.int64)
    lengths = np.full(sizes.count, -1, np.int64)
    end = sizes.codes
    for group in range(_groups(sizes.count)):
        first = group * _GROUP
        number = min(_GROUP, sizes.count - first)
        for copy in (_HEADER.size, sizes.second_index):
            read = _read_group(view, start + copy, group, number, sizes)
            if read is None:
                continue
            offset, own = read
            ends = offset + np.cumsum(own + 4)
            if end <= offset and ends[-1] <= sizes.second_index:
                offsets[first : first + number] = start + ends - own - 4
                lengths[first : first + number] = own
                end = int(ends[-1])
                break
    return offsets, lengths


def _read_group(
    view: memoryview, index: int, group: int, number: int, sizes: _Sizes
) -> tuple[int, NDArray[np.int64]] | None:
    size = _group_bytes(sizes.width)
    raw = _cut(view, index + group * size, size)
    if len(raw) < size or _group_crc(raw[:-4], group) != int.from_bytes(raw[-4:], "little"):
        return None
    bits = np.unpackbits(np.frombuffer(raw[4:-4], np.uint8), bitorder="little")
    powers = np.int64(1) << np.arange(sizes.width, dtype=np.int64)
    longer = bits.reshape(_GROUP, sizes.width)[:number] @ powers
    return int.from_bytes(raw[:4], "little"), sizes.shortest + longer.astype(np.int64)


def _cut(view: memoryview, begin: int, length: int) -> memoryview:
    """Return what the data has of a piece; nothing if it begins before the data."""
    return view[begin : begin + length] if begin >= 0 else view[:0]
