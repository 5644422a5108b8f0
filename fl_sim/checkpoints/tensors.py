"""Tensors out of a pickle's description: a closed list of forms, each checked and none called."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fl_sim.checkpoints.arrays import Array, array_of, content_of, is_scalar
from fl_sim.checkpoints.nodes import DICTIONARIES, Global, Made, Node, Persistent, Table, members
from fl_sim.checkpoints.source import Damaged
from fl_sim.checkpoints.storage import Storage, View
from fl_sim.errors import legible

DTYPES: dict[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
"""Every element type that torch has, by every name of it."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
}
_QUANTISED = {
    torch.qint8: torch.int8,
    torch.quint8: torch.uint8,
    torch.qint32: torch.int32,
    torch.quint4x2: torch.uint8,
    torch.quint2x4: torch.uint8,
}
_PACKED = {torch.quint4x2: 2, torch.quint2x4: 4}
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu|xla|meta|privateuseone)(:\d{1,3})?")
_DEEPEST = 16
_SPARSE = ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")

Find = Callable[[str, int, int], Storage]
"""Finds the storage of a key, given its bytes as claimed and the width of its elements."""


@dataclass(eq=False)
class Entry:
    """A tensor as the file describes it; its values are not read yet.

    Args:
        kind: ``"strided"``, ``"array"``, ``"meta"``, ``"quantised"``, ``"nested"`` or a sparse
            layout's name.
        shape: of the whole tensor.
        views: of its values first, then of what its layout needs besides.
        array: its values, where NumPy wrote them.
        words: about its layout; empty for a plain one.
        spare: what stands in its description and is no part of a tensor.
    """

    kind: str
    shape: tuple[int, ...]
    views: tuple[View, ...] = ()
    array: Array | None = None
    words: str = ""
    spare: list[Node] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of its values, and of what its layout needs."""
        return sum(view.size for view in self.views) + (self.array.size if self.array else 0)


class Tensors:
    """Recognises the tensors of one pickle.

    Args:
        find: finds storages.
        nested: reads a storage that lies in the pickle itself, as bytes of ``torch.save``.
    """

    def __init__(self, find: Find, nested: Callable[[bytes], Storage] | None = None) -> None:
        self.find, self.nested = find, nested
        self.known: dict[int, tuple[Node, Entry | None]] = {}
        self.inside: dict[int, Storage] = {}
        self.depth = 0

    def entry(self, node: Node) -> Entry | None:
        """Return what a node describes, ``None`` if it is no tensor.

        Raises:
            Damaged: if it is one that cannot be.
        """
        if not isinstance(node, Made):
            return None
        if id(node) not in self.known:
            self.known[id(node)] = (node, None)  # what contains itself is no tensor
            self.depth += 1
            if self.depth > _DEEPEST:
                raise Damaged("a tensor is wrapped too deeply")
            self.known[id(node)] = (node, self._made(node))
            self.depth -= 1
        return self.known[id(node)][1]

    def storage(self, node: Node) -> tuple[Storage, torch.dtype, int, list[Node]] | None:
        """Return a storage, its element type and first element, and what its reference has besides.

        ``None`` if the node refers to none.
        """
        if isinstance(node, Made) and node.path == "torch.storage._load_from_bytes":
            content = content_of(node.arguments[0]) if _tuple(node.arguments, 1) else None
            if content is None or self.nested is None:
                return None
            storage = self._inside(node, content)
            return storage, storage.dtype, 0, []
        if not isinstance(node, Persistent) or not isinstance(node.key, tuple):
            return None
        key = node.key
        if len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Global):
            return None
        _, kind, name, device, count, *rest = key
        dtype = _storage_dtype(kind)
        if dtype is None or not isinstance(name, str | int) or not _natural(count):
            return None
        spare = [] if isinstance(device, str) and _DEVICE.fullmatch(device) else [device]
        first = 0
        if rest and _tuple(rest[0], 3) and all(_natural(n) for n in rest[0][1:]):
            first, rest = rest[0][1], rest[1:]  # a legacy view: its key, offset and size
        spare += [item for item in rest if item is not None]
        width = _PACKED.get(dtype, 1)
        size = -(-count // width) * _plain(dtype).itemsize
        swap = 4 if dtype is torch.complex64 else 8 if dtype is torch.complex128 else 0
        return self.find(str(name), size, swap or _plain(dtype).itemsize), dtype, first, spare

    def _inside(self, node: Made, content: bytes | str) -> Storage:
        """Read a storage that lies in the pickle itself, once."""
        if id(node) not in self.inside:
            assert self.nested is not None
            raw = content.encode("latin1", "replace") if isinstance(content, str) else content
            self.inside[id(node)] = self.nested(raw)
        return self.inside[id(node)]

    def _made(self, node: Made) -> Entry | None:
        array = None if is_scalar(node) else array_of(node)
        if array is not None:
            return Entry("array", array.shape, array=array, spare=array.spare)
        build = _FORMS.get(node.path)
        if build is None or not isinstance(node.arguments, tuple):
            return None
        entry = build(self, node.arguments)
        if entry is None:
            return None
        extra = [*node.states, *node.pairs, *node.elements]
        extra += [] if node.named is None else [node.named]
        if extra:
            entry.spare.extend(extra)
        return entry

    def _strided(
        self, place: tuple[Node, ...], dtype: torch.dtype | None, rest: tuple[Node, ...]
    ) -> Entry | None:
        storage, offset, size, stride = place
        found = self.storage(storage)
        shape, steps = _numbers(size), _numbers(stride)
        if found is None or shape is None or steps is None or not _natural(offset):
            return None
        held, kind, first, spare = found
        view = View(held, dtype or _plain(kind), first + offset, shape, steps)
        unread = [f"{key} when read" for item in rest for key in _postponed(item)]
        rest = tuple(item for item in rest if not _postponed(item))
        spare = [*spare, *_unexplained(rest)]
        return Entry("strided", shape, (view,), words=", ".join(unread), spare=spare)

    def _tensor_v2(self, arguments: tuple[Node, ...]) -> Entry | None:
        if len(arguments) < 4:
            return None
        return self._strided(arguments[:4], None, arguments[4:])

    def _tensor_v3(self, arguments: tuple[Node, ...]) -> Entry | None:
        if len(arguments) < 7:
            return None
        dtype = dtype_of(arguments[6])
        if dtype is None:
            return None
        return self._strided(arguments[:4], dtype, (*arguments[4:6], *arguments[7:]))

    def _wrapped(self, arguments: tuple[Node, ...]) -> Entry | None:
        """Read a parameter: a tensor, whether it has a gradient, hooks, a state."""
        inner = self.entry(arguments[0]) if arguments else None
        if inner is None:
            return None
        spare = [*inner.spare, *_unexplained(arguments[1:])]
        return Entry(inner.kind, inner.shape, inner.views, inner.array, inner.words, spare)

    def _subclass(self, arguments: tuple[Node, ...]) -> Entry | None:
        """Read ``_rebuild_from_type_v2``: a function, a class, its arguments, a state."""
        if len(arguments) < 3:
            return None
        inner = self.entry(Made(arguments[0], arguments[2]))
        if inner is None:
            return None
        inner.spare.extend(_unexplained(arguments[3:]))
        return inner

    def _quantised(self, arguments: tuple[Node, ...]) -> Entry | None:
        if len(arguments) < 5 or not isinstance(arguments[4], tuple) or not arguments[4]:
            return None
        found, scheme = self.storage(arguments[0]), arguments[4]
        shape, stride = _numbers(arguments[2]), _numbers(arguments[3])
        if found is None or shape is None or stride is None or not _natural(arguments[1]):
            return None
        held, dtype, first, spare = found
        if dtype in _PACKED:  # several elements a byte
            shape, stride = (held.size,), (1,)
        view = View(held, _plain(dtype), first + arguments[1], shape, stride)
        name = scheme[0].name if isinstance(scheme[0], Global) else "unknown scheme"
        words = f"quantised to {str(dtype)[6:]}, {name}"
        inner = [self.entry(item) for item in scheme[1:]]
        further = tuple(v for part in inner if part is not None for v in part.views)
        plain = [n for n, part in zip(scheme[1:], inner, strict=True) if part is None]
        if all(isinstance(n, int | float) for n in plain):
            words += "".join(f", {legible(repr(n), 40)}" for n in plain)
        else:
            spare = [*spare, *plain]
        spare = [*spare, *_unexplained(arguments[5:])]
        return Entry("quantised", shape, (view, *further), words=words, spare=spare)

    def _sparse(self, arguments: tuple[Node, ...]) -> Entry | None:
        if len(arguments) != 2 or not isinstance(arguments[1], tuple):
            return None
        layout, parts = _layout(arguments[0]), list(arguments[1])
        needed = 2 if layout == "sparse_coo" else 3
        if layout is None or len(parts) <= needed:
            return None
        inner = [self.entry(part) for part in parts[:needed]]
        shape = _numbers(parts[needed])
        views = [e.views[0] for e in inner if e is not None and e.kind == "strided"]
        if shape is None or len(views) != needed:
            return None
        spare = [item for e in inner if e is not None for item in e.spare]
        spare += _unexplained(tuple(parts[needed + 1 :]))
        words = f"{layout.replace('_', ' ')}, {views[-1].elements} values"
        return Entry(layout, shape, (views[-1], *views[:-1]), words=words, spare=spare)

    def _meta(self, arguments: tuple[Node, ...]) -> Entry | None:
        shape = _numbers(arguments[1]) if len(arguments) > 1 else None
        if shape is None:
            return None
        spare = _unexplained((*arguments[3:],))
        return Entry("meta", shape, words="on the meta device, without values", spare=spare)

    def _device(self, arguments: tuple[Node, ...]) -> Entry | None:
        """Read a tensor of another device: its values, an element type, a device, a gradient."""
        inner = self.entry(arguments[0]) if arguments else None
        if inner is None:
            return None
        known = [a for a in arguments[1:] if dtype_of(a) is None]
        devices = [a for a in known if isinstance(a, str) and _DEVICE.fullmatch(a)]
        inner.spare.extend(_unexplained(tuple(a for a in known if a not in devices)))
        return inner

    def _nested(self, arguments: tuple[Node, ...]) -> Entry | None:
        inner = [self.entry(item) for item in arguments]
        views = tuple(e.views[0] for e in inner if e is not None and e.kind == "strided")
        if not views or len(views) != len(arguments):
            return None
        words = "a nested tensor, its values in one row"
        return Entry("nested", views[0].shape, views, words=words)


_FORMS: dict[str, Callable[[Tensors, tuple[Node, ...]], Entry | None]] = {
    "torch._utils._rebuild_tensor": Tensors._tensor_v2,
    "torch._utils._rebuild_tensor_v2": Tensors._tensor_v2,
    "torch._utils._rebuild_tensor_v3": Tensors._tensor_v3,
    "torch._utils._rebuild_parameter": Tensors._wrapped,
    "torch._utils._rebuild_parameter_with_state": Tensors._wrapped,
    "torch._tensor._rebuild_from_type_v2": Tensors._subclass,
    "torch._utils._rebuild_qtensor": Tensors._quantised,
    "torch._utils._rebuild_sparse_tensor": Tensors._sparse,
    "torch._utils._rebuild_sparse_csr_tensor": Tensors._sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": Tensors._meta,
    "torch._utils._rebuild_device_tensor_from_numpy": Tensors._device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Tensors._device,
    "torch._utils._rebuild_nested_tensor": Tensors._nested,
}
FORMS = frozenset(_FORMS)
"""Functions by which torch describes a tensor."""


def dtype_of(node: Node) -> torch.dtype | None:
    """Return the element type that a node names."""
    if isinstance(node, Global) and node.module == "torch":
        return DTYPES.get(node.name)
    return None


def is_storage(node: Global) -> bool:
    """Return whether a name is a storage class of torch's."""
    return _storage_dtype(node) is not None


def _storage_dtype(kind: Global) -> torch.dtype | None:
    if kind.module in ("torch", "torch.storage", "torch.cuda"):
        return _STORAGES.get(kind.name)
    return None


def _plain(dtype: torch.dtype) -> torch.dtype:
    return _QUANTISED.get(dtype, dtype)


def _layout(node: Node) -> str | None:
    if not isinstance(node, Made) or node.path != "torch.serialization._get_layout":
        return None
    name = node.arguments[0] if _tuple(node.arguments, 1) else None
    text = name.removeprefix("torch.") if isinstance(name, str) else ""
    return text if text in _SPARSE else None


def _numbers(node: Node) -> tuple[int, ...] | None:
    """Return the whole numbers of a tuple, or of a ``torch.Size``."""
    if isinstance(node, Made) and node.path == "torch.Size" and _tuple(node.arguments, 1):
        node = node.arguments[0]
    if not isinstance(node, tuple | list):
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in node):
        raise Damaged("a tensor's shape or strides are no whole numbers")
    return tuple(node)


def _natural(node: Node) -> bool:
    return isinstance(node, int) and not isinstance(node, bool) and node >= 0


def _tuple(node: Node, length: int) -> bool:
    return isinstance(node, tuple) and len(node) == length


def _unexplained(rest: tuple[Node, ...]) -> list[Node]:
    """Return what is neither a flag nor the empty dictionary that stands for "no hooks"."""
    return [item for item in rest if not (item is None or isinstance(item, bool) or _empty(item))]


def _postponed(node: Node) -> list[str]:
    """Return what torch does to complex values only when they are read, of a tensor's metadata."""
    pairs = node.pairs if isinstance(node, Table) and not node.states else []
    known = all(key in ("conj", "neg") and value is True for key, value in pairs)
    return [f"{key}ugated" if key == "conj" else "negated" for key, _ in pairs] if known else []


def _empty(node: Node) -> bool:
    if isinstance(node, Table):
        return not (node.pairs or node.states)
    if isinstance(node, Made) and node.path in DICTIONARIES:
        return not (members(node) or node.states or node.named or node.elements or node.arguments)
    return isinstance(node, tuple | list) and not node
