"""A zip archive's directory: where it is, what it names, and which of its bytes say nothing.

Source of the layout: PKWARE's APPNOTE 6.3.9, and torch's ``caffe2/serialize/inline_container.cc``
for its padding.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from fl_sim.checkpoints.source import Damaged, Source

_END, _END64, _LOCATOR, _CENTRAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_MOST_RECORDS = 200_000
_ATTRIBUTES = frozenset({0, 0o600 << 16, 0o644 << 16, 0o100600 << 16, 0o100644 << 16})
_NEEDED = frozenset({0, 10, 20, 45})


@dataclass(eq=False)
class Record:
    """One file of an archive.

    Args:
        name: as the directory has it.
        method: 0 stored, 8 deflated.
        checksum: CRC-32 as stated.
        packed: bytes in the archive.
        size: bytes of the content.
        place: of its own header.
        flags: general purpose bits.
        stamp: time and date as stated.
        versions: of the format, of the program that wrote it and of the one that it needs.
        attributes: of the file, as the system had them.
        data: place of its content.
    """

    name: str
    method: int
    checksum: int
    packed: int
    size: int
    place: int
    flags: int
    stamp: int
    versions: tuple[int, int] = (0, 0)
    attributes: int = 0
    data: int = 0


def find_directory(source: Source) -> tuple[Source, int, int, int, int]:
    """Return the directory, how many records it has, the archive's shift in the file and its end.

    Last come bytes of the end itself that say what nobody needs.
    """
    place = _find_end(source)
    (_, disk, disk_start, here, count, size, offset, comment) = struct.unpack(
        "<4s4H2IH", source.read(place, 22)
    )
    first, loose = place, 2 * (comment not in (0, source.size - place - 22))
    if place >= 20 and source.read(place - 20, 4) == _LOCATOR:
        first, wide, stated, odd = _wide_end(source, place - 20)
        if (count, size, offset) != tuple(
            min(w, full) for w, full in zip(wide, (_FULL16, _FULL32, _FULL32), strict=True)
        ) and (count, size, offset) != (_FULL16, _FULL32, _FULL32):
            raise Damaged("the two ends of its archive's directory disagree")
        count, size, offset = wide
    if disk or disk_start or (here != count and here != _FULL16):
        raise Damaged("its archive is one of several parts")
    begin = first - size
    if begin < 0 or begin < offset:
        raise Damaged("its archive's directory lies outside the file")
    if count > _MOST_RECORDS or count * 46 > size:
        raise Damaged("its archive's directory is too short for the records that it counts")
    if first != place:
        loose += odd + 8 * (stated + begin - offset != first)
    # A comment counts as trailing bytes.
    return source.part(begin, size), count, begin - offset, place + 22, loose


def _find_end(source: Source) -> int:
    """Return the last place where an archive's directory ends."""
    window, stop = 1 << 20, source.size
    while stop > 0:
        begin = max(0, stop - window)
        found = source.read(begin, min(stop + 3, source.size) - begin).rfind(_END)
        while found >= 0:
            if begin + found + 22 <= source.size:
                return begin + found
            found = source.read(begin, found + 3).rfind(_END)
        stop = begin
    raise Damaged("its archive has no directory: it was cut, or never finished")


def _wide_end(source: Source, locator: int) -> tuple[int, tuple[int, int, int], int, int]:
    """Read the 64-bit end of the directory, which torch always writes.

    Returns:
        Its place; records, size and place of the directory; its own place as stated; bytes of
        versions that no program writes.
    """
    _, disk, stated, disks = struct.unpack("<4sIQI", source.read(locator, 20))
    place = locator - 56
    fields = struct.unpack("<4sQ2H2I4Q", source.read(place, 56))
    if fields[0] != _END64 or fields[1] != 44:
        raise Damaged("its archive's 64-bit directory end is broken")
    if disk or disks > 1 or fields[4] or fields[5] or fields[6] != fields[7]:
        raise Damaged("its archive is one of several parts")
    odd = 2 * (fields[2] & 0xFF > 63 or fields[2] >> 8 not in (0, 3))
    odd += 2 * (fields[3] not in _NEEDED) + 4 * (disks != 1)
    return place, (fields[7], fields[8], fields[9]), stated, odd


class _Entry(NamedTuple):
    """An entry of the directory before its name, extra fields and comment."""

    signature: bytes
    made: int
    needed: int
    flags: int
    method: int
    time: int
    date: int
    checksum: int
    packed: int
    size: int
    name: int
    extra: int
    comment: int
    disk: int
    internal: int
    external: int
    offset: int


def read_directory(directory: Source, count: int, shift: int) -> tuple[list[Record], int]:
    """Read the directory; also return how many bytes of it say nothing that is needed."""
    content = directory.read(0, directory.size)
    records, place, spare = [], 0, 0
    for _ in range(count):
        if len(content) - place < 46:
            raise Damaged("its archive's directory is cut")
        entry = _Entry._make(struct.unpack_from("<4s6H3I5H2I", content, place))
        extra = place + 46 + entry.name
        comment = extra + entry.extra
        stop = comment + entry.comment
        if entry.signature != _CENTRAL or stop > len(content) or entry.disk not in (0, _FULL16):
            raise Damaged("its archive's directory is broken")
        wide, unknown = extra_fields(
            content[extra:comment], [entry.size, entry.packed, entry.offset]
        )
        size, packed, offset = wide
        spare += unknown + entry.comment
        spare += 2 * (entry.internal != 0) + 4 * (entry.external not in _ATTRIBUTES)
        spare += 2 * (entry.made & 0xFF > 63 or entry.made >> 8 not in (0, 3))
        spare += 2 * (entry.needed not in _NEEDED)
        records.append(
            Record(
                content[place + 46 : extra].decode("utf-8", "backslashreplace"),
                entry.method,
                entry.checksum,
                packed,
                size,
                offset + shift,
                entry.flags,
                entry.time | entry.date << 16,
                (entry.made, entry.needed),
                entry.external,
            )
        )
        place = stop
    return records, spare + len(content) - place


def extra_fields(blocks: bytes, values: list[int]) -> tuple[list[int], int]:
    """Read extra fields: 64-bit sizes, torch's padding; count bytes of anything else.

    Args:
        blocks: the fields as they stand.
        values: sizes that are there in 64 bits where they are full in 32.
    """
    place, spare = 0, 0
    values = list(values)
    while place + 4 <= len(blocks):
        kind, length = struct.unpack_from("<2sH", blocks, place)
        body = blocks[place + 4 : place + 4 + length]
        place += 4 + length
        if kind == b"\x01\x00":
            full = [i for i, value in enumerate(values) if value == _FULL32]
            if len(body) % 8 or len(body) < 8 * len(full):
                raise Damaged("a 64-bit size in its archive is broken")
            for index, value in zip(full, struct.unpack(f"<{len(body) // 8}Q", body), strict=False):
                values[index] = value
            spare += len(body) - 8 * len(full) + 2 * (len(body) != length)
        elif kind != b"FB" or body.strip(b"Z") or len(body) != length:
            spare += 4 + len(body)
    return values, spare + max(0, len(blocks) - place)
