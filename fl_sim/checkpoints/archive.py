"""Zip archives, taken apart strictly: every byte is a record's, fixed structure, or a finding.

Python's ``zipfile`` reads what an archive's directory names and says nothing of the rest, and torch
reads without comparing checksums. Here the directory, each record's own header, its padding and its
descriptor are compared, and what lies between, before and after is a finding.
"""

import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field

from fl_sim.checkpoints.finding import Finding
from fl_sim.checkpoints.source import Damaged, Source
from fl_sim.checkpoints.zip_directory import Record, extra_fields, find_directory, read_directory
from fl_sim.errors import legible

_LOCAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_STORED, _DEFLATED = 0, 8
_EXPANSION, _SMALL = 20, 1 << 24
"""Weights hardly shrink; an archive that grows more than so, beyond a few megabytes, is a bomb."""


@dataclass
class Archive:
    """An archive that was taken apart.

    Args:
        source: the file.
        records: by name; of doubled names the last.
        order: all of them in the directory's order.
        findings: what is neither a record's content nor fixed structure.
    """

    source: Source
    records: dict[str, Record] = field(default_factory=dict)
    order: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def content(self, name: str) -> bytearray:
        """Return a record's content.

        Raises:
            Damaged: if there is no such record, or it does not unpack to its size.
        """
        if name not in self.records:
            raise Damaged(f"its archive has no record '{legible(name)}'")
        record = self.records[name]
        if record.method == _STORED:
            return self.source.fill(record.data, record.packed)
        return _inflated(self.source, record)[0]

    def part(self, name: str) -> Source:
        """Return a record that is stored as it is, without reading it."""
        record = self.records[name]
        return self.source.part(record.data, record.packed)


def open_archive(source: Source) -> Archive:
    """Take an archive apart.

    Raises:
        Damaged: if its directory is broken, or its records overlap, are encrypted or packed in a
            way that neither torch nor NumPy uses.
    """
    directory, count, shift, end, loose = find_directory(source)
    archive = Archive(source)
    place = directory.start - source.start
    order, extra = read_directory(directory, count, shift)
    archive.order = order
    if extra + loose:
        archive.findings.append(_spare(extra + loose, "in its archive's directory", place))
    _check_expansion(source, order)
    _check_places(archive, place)
    for record in order:
        if record.name in archive.records:
            lost = archive.records[record.name]
            what = (
                f"The archive has '{legible(record.name, 80)}' twice: {lost.size} bytes are hidden."
            )
            archive.findings.append(Finding("file", "carries", what, None, {"bytes": lost.size}))
        archive.records[record.name] = record
    if end < source.size:
        archive.findings.append(_spare(source.size - end, "after its archive's end", end))
    _check_stamps(archive)
    _check_alike(archive)
    return archive


def _spare(size: int, where: str, place: int) -> Finding:
    what = f"{size} bytes that nothing needs stand {where}, at byte {place}."
    return Finding("file", "carries", what, None, {"bytes": size, "place": place})


def _check_expansion(source: Source, records: list[Record]) -> None:
    for record in records:
        if record.flags & 1:
            raise Damaged(f"its record '{legible(record.name, 80)}' is encrypted")
        if record.method not in (_STORED, _DEFLATED):
            what = f"its record '{legible(record.name, 80)}' is packed by method {record.method}"
            raise Damaged(f"{what}, which neither torch nor NumPy uses")
        if record.method == _STORED and record.packed != record.size:
            raise Damaged(f"its record '{legible(record.name, 80)}' states two sizes")
    total = sum(record.size for record in records)
    if total > _SMALL and total > _EXPANSION * source.size:
        raise Damaged(f"its archive would unpack to {total} bytes from {source.size}")


def _check_places(archive: Archive, directory: int) -> None:
    """Go through the records as they lie, and report what lies between."""
    cursor, wrong = 0, []
    for record in sorted(archive.order, key=lambda record: record.place):
        if record.place > cursor:
            where = "before its archive" if cursor == 0 else "between its archive's records"
            archive.findings.append(_spare(record.place - cursor, where, cursor))
        elif record.place < cursor:
            raise Damaged("records of its archive overlap")
        cursor, spare = _local(archive.source, record, directory)
        if spare:
            where = f"in the header of '{legible(record.name, 80)}'"
            archive.findings.append(_spare(spare, where, record.place))
        if not _sound(archive, record):
            wrong.append(record)
    gap = _before_directory(archive.source, cursor, directory)
    if gap:
        archive.findings.append(_spare(gap, "between its archive's records", cursor))
    if wrong:
        names = ", ".join(f"'{legible(record.name, 60)}'" for record in wrong[:4])
        what = (
            f"{len(wrong)} of its records do not have the checksum that the archive states: "
            f"{names}; they were changed after it was written or damaged, or checksums were "
            f"switched off."
        )
        size = sum(record.size for record in wrong)
        archive.findings.append(Finding("file", "suspicious", what, None, {"bytes": size}))


def _before_directory(source: Source, cursor: int, directory: int) -> int:
    if cursor > directory:
        raise Damaged("records of its archive run into its directory")
    return directory - cursor


def _local(source: Source, record: Record, limit: int) -> tuple[int, int]:
    """Compare a record's own header with the directory; return its end and its spare bytes."""
    (signature, needed, flags, method, time, date, checksum, packed, size, name, extra) = (
        struct.unpack("<4s5H3I2H", source.read(record.place, 30))
    )
    rest = source.read(record.place + 30, name + extra)
    (size, packed), spare = extra_fields(rest[name:], [size, packed])
    stated = (record.checksum, record.packed, record.size)
    later = bool(flags & 8) and (checksum, packed, size) == (0, 0, 0)
    same = (
        signature == _LOCAL
        and (flags, method) == (record.flags, record.method)
        and rest[:name].decode("utf-8", "backslashreplace") == record.name
        and (later or (checksum, packed, size) == stated)
    )
    if not same:
        raise Damaged(f"its record '{legible(record.name, 80)}' is not what its directory says")
    spare += 4 * (time | date << 16 != record.stamp)
    spare += 2 * (needed != record.versions[1])
    record.data = record.place + 30 + name + extra
    end = record.data + record.packed
    if end > limit:
        raise Damaged(f"its record '{legible(record.name, 80)}' ends beyond the archive")
    return end + _descriptor(source, record, end, limit), spare


def _descriptor(source: Source, record: Record, place: int, limit: int) -> int:
    """Return the length of the sizes that follow a record's content, 0 if there are none."""
    if not record.flags & 8:
        return 0
    stated = (record.checksum, record.packed, record.size)
    content = source.read(place, max(0, min(24, limit - place)))
    for form in ("<4sI2Q", "<4sI2I"):
        if len(content) >= struct.calcsize(form):
            signature, *sizes = struct.unpack_from(form, content)
            if signature == _DESCRIPTOR and tuple(sizes) == stated:
                return struct.calcsize(form)
    for form in ("<I2Q", "<I2I"):
        if len(content) >= struct.calcsize(form) and struct.unpack_from(form, content) == stated:
            return struct.calcsize(form)
    return 0


def _sound(archive: Archive, record: Record) -> bool:
    """Compare a record's checksum; report what is packed longer than it needs to be."""
    if record.method == _STORED:
        checksum, place = 0, record.data
        while place < record.data + record.packed:
            step = min(1 << 20, record.data + record.packed - place)
            checksum = zlib.crc32(archive.source.read(place, step), checksum)
            place += step
        return checksum == record.checksum
    content, used = _inflated(archive.source, record)
    least = len(_deflated(content))
    spare = max(record.packed - used, record.packed - least - least // 8 - 64)
    if spare > 0:
        where = f"in the packed record '{legible(record.name, 80)}'"
        archive.findings.append(_spare(spare, where, record.data))
    return zlib.crc32(content) == record.checksum


def _inflated(source: Source, record: Record) -> tuple[bytearray, int]:
    """Unpack a record, and say how many of its packed bytes that took."""
    machine, content = zlib.decompressobj(-15), bytearray()
    place, stop = record.data, record.data + record.packed
    try:
        while place < stop and not machine.eof:
            step = source.read(place, min(1 << 16, stop - place))
            place += len(step)
            while step and len(content) <= record.size:
                content += machine.decompress(step, max(1, record.size + 1 - len(content)))
                step = machine.unconsumed_tail
            if len(content) > record.size:
                break
    except zlib.error:
        raise Damaged(f"its record '{legible(record.name, 80)}' cannot be unpacked") from None
    if len(content) != record.size or not machine.eof:
        raise Damaged(f"its record '{legible(record.name, 80)}' does not unpack to its size")
    return content, record.packed - len(machine.unused_data) - (stop - place)


def _deflated(content: bytearray) -> bytes:
    machine = zlib.compressobj(1, zlib.DEFLATED, -15)
    return machine.compress(content) + machine.flush()


def _check_alike(archive: Archive) -> None:
    """One program wrote all records, so what describes it is the same in all of them."""
    odd = 0
    for method in (_STORED, _DEFLATED):  # packed ones need another version
        alike = [record for record in archive.order if record.method == method]
        kinds = Counter((record.versions, record.attributes) for record in alike)
        odd += len(alike) - max(kinds.values(), default=0)
    if odd:
        what = f"{odd} records of its archive were written by another program than the others."
        archive.findings.append(Finding("file", "suspicious", what, None, {"bytes": 8 * odd}))


def _check_stamps(archive: Archive) -> None:
    """Times of day differ where a program wrote them, but no program writes impossible ones."""
    odd = 0
    for record in archive.order:
        time, date = record.stamp & 0xFFFF, record.stamp >> 16
        valid = (time >> 11) < 24 and (time >> 5 & 63) < 60 and (time & 31) < 30
        valid = valid and (record.stamp == 0 or (1 <= (date >> 5 & 15) <= 12 and date & 31 > 0))
        odd += 0 if valid else 4
    stamps = {record.stamp for record in archive.order}
    if len(stamps) > 16 and len(stamps) > len(archive.order) // 4:
        odd += 4 * len(stamps)  # written within seconds, they would be nearly the same
    if odd:
        what = f"The times of its archive's records, {odd} bytes, are none that a program writes."
        archive.findings.append(Finding("file", "suspicious", what, None, {"bytes": odd}))
