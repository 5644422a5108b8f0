"""Pickles outside of archives: torch's format before 1.6, and plain ones of arrays or tensors."""

import io
import struct
from collections.abc import Callable

import torch

from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.finding import Finding
from fl_sim.checkpoints.nodes import Node, Persistent, Table, walk
from fl_sim.checkpoints.pickles import Pickled, read_pickle
from fl_sim.checkpoints.source import Damaged, Source
from fl_sim.checkpoints.storage import Storage
from fl_sim.checkpoints.tensors import Tensors
from fl_sim.checkpoints.weights import checkpoint_of

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_SYSTEM = {"protocol_version": _PROTOCOL, "little_endian": True}
_SIZES = {"short": 2, "int": 4, "long": 4}
_MOST_STORAGES = 200_000


def read_bare_pickle(source: Source) -> Checkpoint:
    """Read a pickle that stands alone, or torch's format before 1.6, which begins with one.

    Raises:
        Damaged: if it is neither, or has no weights.
    """
    first = read_pickle(source.stream())
    if first.root == _MAGIC:
        return _read_legacy(source, first)
    nested: dict[str, Storage] = {}

    def inside(content: bytes) -> Storage:
        storage = nested_storage(content)
        storage.key = str(len(nested))
        nested[storage.key] = storage
        return storage

    tensors = Tensors(_nowhere, inside)
    findings = _trailing(source, first.end)
    return checkpoint_of(first, tensors, nested, source.size, "pickle", findings)


def nested_storage(content: bytes) -> Storage:
    """Return a storage that lies in a pickle as the bytes of ``torch.save``.

    Raises:
        Damaged: if it is none.
    """
    source = Source(io.BytesIO(content), len(content))
    first = read_pickle(source.stream())
    if first.root != _MAGIC:
        raise Damaged("a storage inside its pickle is not as torch writes it")
    system, root, shelf, end = _legacy_parts(source, first)
    found = Tensors(shelf.find).storage(root.root)
    odd = [*_system(system), *root.spare.elements(), *(found[3] if found else [])]
    if found is None or len(shelf.known) != 1 or end != source.size or odd:
        raise Damaged("a storage inside its pickle is not as torch writes it")
    storage = found[0]
    storage.dtype = found[1]
    return storage


def _read_legacy(source: Source, first: Pickled) -> Checkpoint:
    system, root, shelf, end = _legacy_parts(source, first)
    findings = [*_trailing(source, end), *_system(system), *shelf.findings]
    tensors = Tensors(shelf.find, nested_storage)
    kind = "torch file of the format before 1.6"
    return checkpoint_of(root, tensors, shelf.known, source.size, kind, findings)


def _legacy_parts(source: Source, first: Pickled) -> tuple[Node, Pickled, "_Shelf", int]:
    protocol = read_pickle(source.stream(first.end))
    if protocol.root != _PROTOCOL:
        raise Damaged("it is of a version of torch's old format that no torch writes")
    system = read_pickle(source.stream(protocol.end))
    root = read_pickle(source.stream(system.end))
    keys = read_pickle(source.stream(root.end))
    shelf = _Shelf(source, root.root, keys.root)
    for part in (first, protocol, system, keys):
        root.spare.update(part.spare)
    if len(first.names) + len(protocol.names) + len(system.names) + len(keys.names):
        raise Damaged("its head names classes, where torch's old format has numbers only")
    return system.root, root, shelf, shelf.lay_out(keys.end)


class _Shelf:
    """The storages of a file of the old format, one after the other behind its pickles."""

    def __init__(self, source: Source, root: Node, keys: Node) -> None:
        if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
            raise Damaged("its list of storages is broken")
        if len(keys) > _MOST_STORAGES or len({str(key) for key in keys}) != len(keys):
            raise Damaged("its list of storages names one twice")
        self.source, self.keys = source, [str(key) for key in keys]
        self.known: dict[str, Storage] = {}
        self.findings: list[Finding] = []
        self.widths = _widths(root)

    def lay_out(self, place: int) -> int:
        """Find each storage behind its length; return where the last ends."""
        for key in self.keys:
            (count,) = struct.unpack("<q", self.source.read(place, 8))
            width = self.widths.get(key, 1)
            part = self.source.part(place + 8, max(-1, count) * width)
            self.known[key] = Storage(key, part.size, _reader(part))
            place += 8 + part.size
        return place

    def find(self, key: str, size: int, width: int) -> Storage:
        """Return a storage, given its size as the pickle states it."""
        if key not in self.known:
            raise Damaged("a tensor names a storage that is not in the file")
        if size > self.known[key].size:
            raise Damaged(f"its storage has {self.known[key].size} bytes, and {size} are due")
        return self.known[key]


def _reader(part: Source) -> Callable[[], bytearray]:
    return lambda: part.fill(0, part.size)


def _widths(root: Node) -> dict[str, int]:
    """Return how wide the elements of each storage are, by its key."""
    widths: dict[str, int] = {}

    def note(key: str, size: int, width: int) -> Storage:
        widths[key] = width
        return Storage(key, size, bytearray)

    tensors = Tensors(note)
    for node in walk(root):
        if isinstance(node, Persistent):
            found = tensors.storage(node)
            if found is not None and found[1] is torch.complex64:
                widths[found[0].key] = 8
            elif found is not None and found[1] is torch.complex128:
                widths[found[0].key] = 16
    return widths


def _nowhere(key: str, size: int, width: int) -> Storage:
    raise Damaged("its pickle refers to storages that are not in the file")


def _system(node: Node) -> list[Finding]:
    """Check what the old format tells of the machine that wrote it: fixed words and numbers."""
    said = dict(node.pairs) if isinstance(node, Table) and _plain_keys(node) else {}
    sizes = said.pop("type_sizes", None)
    inner = dict(sizes.pairs) if isinstance(sizes, Table) and _plain_keys(sizes) else {}
    if said.get("little_endian") is False:
        raise Damaged("it was written by a big-endian machine: load and save it there once more")
    if said == _SYSTEM and inner == _SIZES and len(node.pairs) == 3 and not node.states:
        return []
    what = "Its head says other things of the machine that wrote it than torch does."
    return [Finding("file", "suspicious", what, None, {"pairs": len(said) + len(inner)})]


def _plain_keys(node: Table) -> bool:
    return all(isinstance(key, str) for key, _ in node.pairs)


def _trailing(source: Source, end: int) -> list[Finding]:
    if end >= source.size:
        return []
    size = source.size - end
    what = f"{size} bytes stand after the end of its content, at byte {end}."
    return [Finding("file", "carries", what, None, {"bytes": size, "place": end})]
