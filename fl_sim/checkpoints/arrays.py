"""NumPy's arrays and scalars out of a pickle's description, and headers of .npy files."""

import math
import re
from dataclasses import dataclass, field

import numpy as np
import torch

from fl_sim.checkpoints.nodes import Global, Made, Node
from fl_sim.checkpoints.source import Damaged
from fl_sim.errors import legible

_DTYPE = re.compile(r"([<>=|]?)(b1|\?|[iu][1248]|f[248]|f1[26]|c8|c16|c32|c24)")
_STATE = 8  # an element type's state: version, byte order, five that are empty, flags
_LARGEST = 1 << 62
_MOST_DIMENSIONS = 32
_HEADER = re.compile(
    rb"\{'descr': '([^'\\]{1,16})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \}( *)\n"
)


@dataclass(eq=False)
class Array:
    """An array as described; its bytes are there already, or lie in a file.

    Args:
        dtype: of the elements.
        shape: of the array.
        fortran: whether the first index runs fastest.
        content: the elements, as bytes or as text with a character a byte.
        spare: what stands in its description and is no part of an array.
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    content: bytes | bytearray | str
    spare: list[Node] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def turned(self) -> bool:
        """Whether its elements must be put into another order for torch."""
        return self.fortran or self.dtype.byteorder == ">"


def array_of(node: Made) -> Array | None:
    """Return the array that a node describes, ``None`` if it is none of numbers.

    Raises:
        Damaged: if its bytes are not what its shape needs.
    """
    name = _numpy(node.path)
    if name == "multiarray._reconstruct" and len(node.states) == 1:
        return _reconstructed(node)
    if name == "numeric._frombuffer" and isinstance(node.arguments, tuple):
        if len(node.arguments) != 4 or node.states:
            return None
        content, dtype, shape, order = node.arguments
        return _checked(_dtype(dtype), shape, order == "F", content_of(content), [])
    if name == "multiarray.scalar" and isinstance(node.arguments, tuple):
        if len(node.arguments) != 2 or node.states:
            return None
        return _checked(_dtype(node.arguments[0]), (), False, content_of(node.arguments[1]), [])
    return None


def is_scalar(node: Node) -> bool:
    """Return whether a node is one number of NumPy's."""
    return isinstance(node, Made) and _numpy(node.path) == "multiarray.scalar"


def content_of(node: Node) -> bytes | str | None:
    """Return bytes, also as pickles of protocol 2 write them: as text with its encoding."""
    for _ in range(2):  # bytearray(encode(text))
        if isinstance(node, Made) and node.path in ("builtins.bytes", "builtins.bytearray"):
            if node.states or not isinstance(node.arguments, tuple):
                return None
            node = (
                node.arguments[0] if len(node.arguments) == 1 else b"" if not node.arguments else 0
            )
    if isinstance(node, bytes | str):
        return node
    if not isinstance(node, Made) or not isinstance(node.arguments, tuple) or node.states:
        return None
    if node.path == "_codecs.encode" and node.arguments[1:] == ("latin1",):
        return node.arguments[0] if isinstance(node.arguments[0], str) else None
    return None


def tensor_of_array(array: Array, buffer: bytearray) -> tuple[torch.Tensor, str]:
    """Return an array's contiguous tensor, and words where torch has no such elements.

    Args:
        array: the array.
        buffer: its content; without a copy where torch can take it as it is.
    """
    values = np.frombuffer(buffer, array.dtype) if buffer else np.empty(0, array.dtype)
    values = values.reshape(array.shape, order="F" if array.fortran else "C")
    words = ""
    if array.dtype.byteorder == ">":
        values = values.astype(array.dtype.newbyteorder("="))
    if (array.dtype.kind in "fc" and array.dtype.itemsize not in (2, 4, 8, 16)) or (
        array.dtype.kind == "f" and array.dtype.itemsize == 16
    ):
        words, values = f"NumPy's {array.dtype.name}, as bytes", np.frombuffer(buffer, np.uint8)
    values = np.require(values, requirements=["C", "A", "W"]).reshape(values.shape)
    return torch.from_numpy(values), words


def buffer_of(array: Array) -> bytearray:
    """Return an array's content, to be written to; a copy if it came as bytes or text."""
    raw = array.content
    if isinstance(raw, bytearray):
        return raw
    return bytearray(raw, "latin1") if isinstance(raw, str) else bytearray(raw)


def parse_header(text: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    """Return element type, shape and order from a .npy file's header, without evaluating it.

    Raises:
        Damaged: if it is not as NumPy writes it, or not of numbers.
    """
    found = _HEADER.fullmatch(text)
    if found is None:
        raise Damaged("an array's header is not as NumPy writes it for an array of numbers")
    dtype = _named_dtype(found[1].decode("latin1"))
    if dtype is None:
        raise Damaged(f"an array has elements of type '{legible(found[1].decode('latin1'))}'")
    shape = tuple(int(part) for part in found[3].split(b",") if part.strip())
    if len(found[4]) >= 64 + 21:  # NumPy aligns to 64, and leaves room to grow by a long integer
        raise Damaged("an array's header is padded further than NumPy does")
    return dtype, shape, found[2] == b"True"


def checked_shape(shape: Node) -> tuple[int, ...]:
    """Return a shape of whole numbers within what can be.

    Raises:
        Damaged: otherwise.
    """
    whole = isinstance(shape, tuple | list) and len(shape) <= _MOST_DIMENSIONS
    if not whole or not all(isinstance(n, int) and 0 <= n < _LARGEST for n in shape):
        raise Damaged("an array's shape is no shape")
    if math.prod(n for n in shape if n) >= _LARGEST:
        raise Damaged("an array's shape is larger than any memory")
    return tuple(shape)


def _numpy(path: str) -> str:
    for start in ("numpy.core.", "numpy._core."):
        if path.startswith(start):
            return path[len(start) :]
    return ""


def _reconstructed(node: Made) -> Array | None:
    """Read ``_reconstruct(ndarray, (0,), b'b')`` with its state."""
    state = node.states[0]
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        return None
    shape, dtype, fortran, content = state[-4:]
    spare: list[Node] = []
    first = node.arguments if isinstance(node.arguments, tuple) else ()
    if len(first) != 3 or not isinstance(first[0], Global) or first[1] != (0,):
        spare += list(first)
    elif content_of(first[2]) not in (b"b", "b"):
        spare.append(first[2])
    if len(state) == 5 and state[0] != 1:
        spare.append(state[0])
    return _checked(_dtype(dtype), shape, fortran is True, content_of(content), spare)


def _checked(
    dtype: tuple[np.dtype[np.generic], list[Node]] | None,
    shape: Node,
    fortran: bool,
    content: bytes | str | None,
    spare: list[Node],
) -> Array | None:
    if dtype is None or content is None:
        return None
    array = Array(dtype[0], checked_shape(shape), fortran, content, [*spare, *dtype[1]])
    if array.size != len(content):
        raise Damaged(f"an array has {len(content)} bytes, and its shape needs {array.size}")
    if isinstance(content, str) and not _one_byte_each(content):
        raise Damaged("an array's text has characters that are no bytes")
    return array


def _one_byte_each(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("latin1"))
    except UnicodeEncodeError:
        return False


def _dtype(node: Node) -> tuple[np.dtype[np.generic], list[Node]] | None:
    """Read ``dtype('f4', False, True)`` with its state; return it and what it has besides."""
    if not isinstance(node, Made) or node.path != "numpy.dtype":
        return None
    arguments = node.arguments if isinstance(node.arguments, tuple) else ()
    if not arguments or not isinstance(arguments[0], str):
        return None
    order, spare = "", [a for a in arguments[1:] if a not in (0, 1)]
    for state in node.states:
        if isinstance(state, tuple) and len(state) == _STATE and isinstance(state[1], str):
            order = state[1]
            usual = (
                state[0] in (3, 4),
                *(item is None for item in state[2:5]),
                state[5:] == (-1, -1, 0),
            )
            if not all(usual):
                spare.append(state)
        else:
            spare.append(state)
    dtype = _named_dtype(order + arguments[0].lstrip("<>=|"))
    return None if dtype is None else (dtype, spare)


def _named_dtype(name: str) -> np.dtype[np.generic] | None:
    if not _DTYPE.fullmatch(name):
        return None
    try:
        return np.dtype(name.replace("b1", "?"))
    except TypeError:
        return None
