"""NumPy's .npz archives, such as the rounds that Flower saves; nothing in them is unpickled."""

import struct

from fl_sim.checkpoints.archive import Archive
from fl_sim.checkpoints.arrays import Array, checked_shape, parse_header
from fl_sim.checkpoints.build import build
from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.finding import Finding
from fl_sim.checkpoints.source import Damaged
from fl_sim.checkpoints.storage import Memory
from fl_sim.checkpoints.tensors import Entry
from fl_sim.checkpoints.wrappers import legible_names, unwrapped
from fl_sim.errors import legible

MAGIC = b"\x93NUMPY"


def is_numpy(archive: Archive) -> bool:
    """Return whether an archive holds arrays of NumPy's and nothing else of weight."""
    names = list(archive.records)
    return bool(names) and 2 * sum(name.endswith(".npy") for name in names) > len(names)


def read_numpy_zip(archive: Archive) -> Checkpoint:
    """Read arrays by their names; what is no array is a finding.

    Raises:
        Damaged: if an array is not what its header says.
    """
    entries, findings = {}, list(archive.findings)
    for name, record in archive.records.items():
        if not name.endswith(".npy"):
            what = f"The archive has a file '{legible(name, 80)}' that is no array."
            evidence: dict[str, float] = {"bytes": record.size, "place": record.place}
            findings.append(Finding("file", "carries", what, None, evidence))
            continue
        array, spare = _array(name, archive.content(name))
        entries[name.removesuffix(".npy")] = Entry("array", array.shape, array=array)
        if spare:
            what = f"{spare} bytes stand after the array's end."
            findings.append(
                Finding("file", "carries", what, name.removesuffix(".npy"), {"bytes": spare})
            )
    if not entries:
        raise Damaged("its archive has no arrays")
    entries, outside = unwrapped(entries)
    names, changed = legible_names(entries)
    built = build(dict(zip(names, entries.values(), strict=True)), Memory(archive.source.size))
    findings += [*outside, *changed, *built.findings]
    return Checkpoint(
        built.state, None, tuple(findings), built.layouts, {}, "NumPy archive of arrays"
    )


def _array(name: str, content: bytearray) -> tuple[Array, int]:
    """Return an array and how many bytes stand after it."""
    quoted = f"'{legible(name, 80)}'"
    if content[:6] != MAGIC or len(content) < 10 or content[6] not in (1, 2, 3) or content[7]:
        raise Damaged(f"its array {quoted} does not begin as NumPy's do")
    form = "<H" if content[6] == 1 else "<I"
    start = 8 + struct.calcsize(form)
    (length,) = struct.unpack_from(form, bytes(content[8:start]).ljust(4, b"\0"))
    if start + length > len(content):
        raise Damaged(f"the header of its array {quoted} is longer than the array's file")
    dtype, shape, fortran = parse_header(bytes(content[start : start + length]))
    array = Array(dtype, checked_shape(shape), fortran, b"")
    missing = array.size - (len(content) - start - length)
    if missing > 0:
        raise Damaged(f"its array {quoted} lacks {missing} bytes of those that its header states")
    begin = start + length
    del content[begin + array.size :], content[:begin]  # without a second copy
    array.content = content
    return array, -missing
