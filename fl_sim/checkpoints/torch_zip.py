"""torch's zip files: state dictionaries, whole checkpoints, TorchScript archives."""

import io
import re

from fl_sim.checkpoints.archive import Archive
from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.finding import UNSEEN, Finding, Level
from fl_sim.checkpoints.pickles import read_pickle
from fl_sim.checkpoints.source import Damaged, Source
from fl_sim.checkpoints.storage import Storage
from fl_sim.checkpoints.tensors import Tensors
from fl_sim.checkpoints.torch_legacy import nested_storage
from fl_sim.checkpoints.weights import checkpoint_of
from fl_sim.errors import legible

_FIXED = {
    "version": re.compile(rb"\d{1,3}\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"\d{1,3}"),
    ".storage_alignment": re.compile(rb"\d{1,6}"),
    ".data/serialization_id": re.compile(rb"\d{40}"),
}
_MASK64 = (1 << 64) - 1
_EMPTY_CONSTANTS = b"\x80\x02)."
_LONG_ROOT = 200
_MUCH_CODE = 1 << 20  # a traced ResNet-18 has a sixth of it


def is_torch(archive: Archive) -> bool:
    """Return whether an archive is one of torch's: a folder with ``data.pkl``."""
    return any(re.fullmatch(r"[^/]*/data\.pkl", name) for name in archive.records)


def read_torch_zip(archive: Archive) -> Checkpoint:
    """Read the weights of an archive, and account for its records.

    Raises:
        Damaged: if it has no weights or is not what it states.
    """
    root = next(n for n in archive.records if re.fullmatch(r"[^/]*/data\.pkl", n))[:-8]
    findings = list(archive.findings)
    stream = _packed(archive, f"{root}data.pkl")
    pickled = read_pickle(stream.stream())
    if pickled.end < stream.size:
        extra = stream.size - pickled.end
        what = (
            f"{extra} bytes stand after the end of the pickle in 'data.pkl', at byte {pickled.end}."
        )
        findings.append(
            Finding("file", "carries", what, None, {"bytes": extra, "place": pickled.end})
        )
    order = (
        bytes(archive.content(f"{root}byteorder")) if f"{root}byteorder" in archive.records else b""
    )
    shelf = _Shelf(archive, f"{root}data/", order == b"big")
    tensors = Tensors(shelf.find, nested_storage)
    script = f"{root}constants.pkl" in archive.records
    findings += _records(archive, root, script)
    kind = "TorchScript archive" if script else "torch archive"
    storages = shelf.every()
    return checkpoint_of(pickled, tensors, storages, archive.source.size, kind, findings)


def _packed(archive: Archive, name: str) -> Source:
    """Return a record as a source, unpacked where it was packed."""
    if archive.records[name].method == 0:
        return archive.part(name)
    content = bytes(archive.content(name))
    return Source(io.BytesIO(content), len(content))


class _Shelf:
    """The storages of an archive, by key; each is read when a tensor needs it."""

    def __init__(self, archive: Archive, folder: str, swapped: bool) -> None:
        self.archive, self.folder, self.swapped = archive, folder, swapped
        self.known: dict[str, Storage] = {}

    def find(self, key: str, size: int, width: int) -> Storage:
        """Return a storage, given its size as the pickle states it."""
        storage = self._known(key)
        if size > storage.size:
            raise Damaged(
                f"its storage {legible(key, 40)} has {storage.size} bytes, and {size} are due"
            )
        if self.swapped and width > 1 and storage.swapped == 1:
            storage.swapped = width if storage.size % width == 0 else 1
        return storage

    def every(self) -> dict[str, Storage]:
        """Return all of them, used or not."""
        for name in self.archive.records:
            if name.startswith(self.folder):
                self._known(name[len(self.folder) :])
        return self.known

    def _known(self, key: str) -> Storage:
        if key not in self.known:
            name = self.folder + key
            if name not in self.archive.records:
                raise Damaged(f"its archive has no record '{legible(name, 80)}' for a tensor")
            size = self.archive.records[name].size
            self.known[key] = Storage(key, size, lambda: self.archive.content(name))
        return self.known[key]


def _records(archive: Archive, root: str, script: bool) -> list[Finding]:
    """Check the records that are no tensors: fixed ones by content, the others by what they are."""
    findings, code, code_bytes = [], 0, 0
    if len(root) > _LONG_ROOT:
        what = f"The archive's folder has a name of {len(root)} characters."
        findings.append(Finding("file", "suspicious", what, None, {"bytes": len(root)}))
    for name, record in archive.records.items():
        inner = name.removeprefix(root)
        if inner == "data.pkl" or inner.startswith("data/"):
            continue
        if name.startswith(root) and inner in _FIXED and record.size <= 64:
            content = bytes(archive.content(name))
            if _FIXED[inner].fullmatch(content):
                findings += _identified(archive, inner, content)
                continue
        if script and name.startswith(root):
            if inner == "constants.pkl" and bytes(archive.content(name)) == _EMPTY_CONSTANTS:
                continue
            if inner.startswith("code/") or inner.startswith("traced_inputs"):
                code, code_bytes = code + 1, code_bytes + record.size
                continue
        quoted = f"'{legible(name, 80)}'"
        what = f"The archive has a file {quoted} that no tensor uses, {record.size} bytes."
        findings.append(
            Finding("file", "carries", what, None, {"bytes": record.size, "place": record.place})
        )
    if code:
        what = (
            f"It is a TorchScript archive: {code} files of code and traces, {code_bytes} "
            f"bytes, were neither run nor searched."
        )
        level: Level = "suspicious" if code_bytes > _MUCH_CODE else "note"
        findings.append(
            Finding(
                "file", level, what, None, {"bytes": code_bytes, "files": code, UNSEEN: code_bytes}
            )
        )
    return findings


def _identified(archive: Archive, name: str, content: bytes) -> list[Finding]:
    """Check the identifier that torch writes: its second half combines the records' checksums.

    The first half is a hash of the records' names that depends on the machine (8 bytes).
    """
    if name != ".data/serialization_id":
        return []
    combined = 0
    for record in archive.order:
        if record.name.endswith("/.data/serialization_id"):
            break
        if record.size:
            mixed = record.checksum + 0x9E3779B9 + (combined << 6 & _MASK64) + (combined >> 2)
            combined ^= mixed & _MASK64
    if int(content[20:]) == combined and int(content[:20]) <= _MASK64:
        return []
    what = "Its identifier is not the one that torch makes of these records: 40 digits."
    return [Finding("file", "suspicious", what, None, {"bytes": len(content)})]
