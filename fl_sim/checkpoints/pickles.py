"""Pickles read as data: a stack machine that builds a description and cannot call anything.

Python's unpickler imports and calls what a pickle names. This machine has the same instructions
and none of the means: a name becomes a :class:`~fl_sim.checkpoints.nodes.Global`, a call becomes a
:class:`~fl_sim.checkpoints.nodes.Made`. Instructions are decoded by ``pickletools.genops``, which
executes nothing. What a pickle says without an object holding it (values that are thrown away,
numbers written longer than needed, marks in the memo's numbering) is counted in bytes.
"""

import pickletools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fl_sim.checkpoints.nodes import Global, Made, Node, Persistent, Table
from fl_sim.checkpoints.source import Damaged, Stream

MOST_OPERATIONS = 500_000
"""More are refused: each can ask for some hundred bytes, and a checkpoint has some thousand."""

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2
_LEAVES_WORDS = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT
    BINFLOAT
"""
_LEAVES = frozenset(_LEAVES_WORDS.split())
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEWEST = 5
_LONG = 8  # torch's C++ pickler writes every long integer in eight bytes


@dataclass(frozen=True)
class Pickled:
    """What a pickle says.

    Args:
        root: the object.
        names: every class and function that it names, once each, in order.
        end: place of the first byte after it.
        spare: bytes that no object holds, by what they are.
    """

    root: Node
    names: tuple[Global, ...]
    end: int
    spare: Counter[str] = field(default_factory=Counter)


def read_pickle(stream: Stream) -> Pickled:
    """Read one pickle.

    Raises:
        Damaged: if it is none, or does not end.
    """
    machine = _Machine(stream.tell())
    try:
        for operation, argument, place in pickletools.genops(stream):  # type: ignore[arg-type]
            machine.step(operation.name, argument, place or 0)
        return machine.result(stream.tell())
    except Damaged:
        raise
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise Damaged(f"its pickle is broken ({type(error).__name__})") from None


class _Machine:
    def __init__(self, start: int) -> None:
        self.start = start
        self.stack: list[tuple[Node, int]] = []
        self.marks: list[tuple[list[tuple[Node, int]], int]] = []
        self.memo: dict[int, Node] = {}
        self.first = 0
        self.names: dict[str, Global] = {}
        self.spare: Counter[str] = Counter()
        self.count = 0
        self.frame_end: int | None = None
        self.previous: tuple[str, Any, int] | None = None

    def step(self, name: str, argument: Any, place: int) -> None:
        self.count += 1
        if self.count > MOST_OPERATIONS:
            raise Damaged(f"its pickle has more than {MOST_OPERATIONS} instructions")
        self._close_previous(place)
        self.previous = (name, argument, place)
        if name in _LEAVES:
            value = bytes(argument) if isinstance(argument, bytearray) else argument
            self.stack.append((value, place))
        elif name in _CONSTANTS:
            self.stack.append((_CONSTANTS[name], place))
        else:
            getattr(self, "_" + name.lower())(argument, place)

    def result(self, end: int) -> Pickled:
        self._close_previous(end)
        if self.frame_end is not None:
            self.spare["lengths that are wrong"] += 8
        if not self.stack:
            raise Damaged("its pickle ends without an object")
        root, place = self.stack.pop()
        first = min(
            [p for _, p in self.stack[:1]]
            + [p for s, m in self.marks for p in (m,)]
            + [s[0][1] for s, _ in self.marks if s],
            default=place,
        )
        self.spare["values that are thrown away"] += place - first
        return Pickled(root, tuple(self.names.values()), end, +self.spare)

    def _close_previous(self, place: int) -> None:
        """Compare the instruction that ends here with the shortest form of what it says."""
        if self.frame_end is not None and place >= self.frame_end:
            if place > self.frame_end:
                self.spare["lengths that are wrong"] += 8
            self.frame_end = None
        if self.previous is None:
            return
        name, argument, begun = self.previous
        length = place - begun - 1
        if name in ("LONG1", "LONG4"):
            least = max(_LONG, (argument.bit_length() + 8) // 8)
            extra = length - (1 if name == "LONG1" else 4) - least
        elif name in ("INT", "LONG", "FLOAT", "GET", "PUT"):
            extra = length - _text_length(name, argument)
        elif name == "UNICODE":
            extra = length - _escaped_length(argument) - 1
        elif name == "STRING":
            extra = length - len(ascii(argument)) - 1
        else:
            return
        if extra > 0:
            self.spare["numbers and texts written longer than they are"] += extra

    # Each method below is an instruction of pickle's.

    def _proto(self, argument: int, place: int) -> None:
        if argument > _NEWEST:
            raise Damaged(f"its pickle is of protocol {argument}, which there is not")
        if place != self.start:
            self.spare["instructions without an effect"] += 2

    def _frame(self, argument: int, place: int) -> None:
        if self.frame_end is not None:
            self.spare["lengths that are wrong"] += 8
        self.frame_end = place + 9 + argument

    def _mark(self, argument: None, place: int) -> None:
        self.marks.append((self.stack, place))
        self.stack = []

    def _popped(self) -> tuple[list[Node], int]:
        values = [value for value, _ in self.stack]
        self.stack, place = self.marks.pop()
        return values, place

    def _pop(self, argument: None, place: int) -> None:
        begun = self.stack.pop()[1] if self.stack else self._popped()[1]
        self.spare["values that are thrown away"] += place + 1 - begun

    def _pop_mark(self, argument: None, place: int) -> None:
        self.spare["values that are thrown away"] += place + 1 - self._popped()[1]

    def _dup(self, argument: None, place: int) -> None:
        self.stack.append((self.stack[-1][0], place))

    def _stop(self, argument: None, place: int) -> None:
        pass

    def _put(self, argument: int, place: int) -> None:
        if not self.memo:
            self.first = min(argument, 1)  # Python 2 counted from one
        if argument != len(self.memo) + self.first:
            self.spare["numbers of the memo out of order"] += 1 + (argument.bit_length() + 7) // 8
        self.memo[argument] = self.stack[-1][0]

    _binput = _long_binput = _put

    def _memoize(self, argument: None, place: int) -> None:
        self.memo[len(self.memo)] = self.stack[-1][0]

    def _get(self, argument: int, place: int) -> None:
        self.stack.append((self.memo[argument], place))

    _binget = _long_binget = _get

    def _empty_list(self, argument: None, place: int) -> None:
        self.stack.append(([], place))

    def _empty_dict(self, argument: None, place: int) -> None:
        self.stack.append((Table(), place))

    def _empty_set(self, argument: None, place: int) -> None:
        self.stack.append((Made(Global("builtins", "set")), place))

    def _frozenset(self, argument: None, place: int) -> None:
        values, begun = self._popped()
        self.stack.append((Made(Global("builtins", "frozenset"), elements=values), begun))

    def _list(self, argument: None, place: int) -> None:
        values, begun = self._popped()
        self.stack.append((values, begun))

    def _tuple(self, argument: None, place: int) -> None:
        values, begun = self._popped()
        self.stack.append((tuple(values), begun))

    def _dict(self, argument: None, place: int) -> None:
        values, begun = self._popped()
        self.stack.append((Table(_paired(values)), begun))

    def _short_tuple(self, count: int) -> None:
        taken = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append((tuple(value for value, _ in taken), taken[0][1]))

    def _tuple1(self, argument: None, place: int) -> None:
        self._short_tuple(1)

    def _tuple2(self, argument: None, place: int) -> None:
        self._short_tuple(2)

    def _tuple3(self, argument: None, place: int) -> None:
        self._short_tuple(3)

    def _append(self, argument: None, place: int) -> None:
        value, begun = self.stack.pop()
        self._extend([value], begun, place)

    def _appends(self, argument: None, place: int) -> None:
        self._extend(*self._popped(), place)

    _additems = _appends

    def _extend(self, values: list[Node], begun: int, place: int) -> None:
        target = self.stack[-1][0]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.elements.extend(values)
        else:
            self.spare["values that are thrown away"] += place + 1 - begun

    def _setitem(self, argument: None, place: int) -> None:
        value, _ = self.stack.pop()
        key, begun = self.stack.pop()
        self._update([key, value], begun, place)

    def _setitems(self, argument: None, place: int) -> None:
        self._update(*self._popped(), place)

    def _update(self, values: list[Node], begun: int, place: int) -> None:
        target = self.stack[-1][0]
        if isinstance(target, Table | Made):
            target.pairs.extend(_paired(values))
        else:
            self.spare["values that are thrown away"] += place + 1 - begun

    def _build(self, argument: None, place: int) -> None:
        state, begun = self.stack.pop()
        target = self.stack[-1][0]
        if isinstance(target, Table | Made):
            target.states.append(state)
        else:
            self.spare["values that are thrown away"] += place + 1 - begun

    def _named(self, module: Any, name: Any, place: int) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Damaged("its pickle names a class by something that is no text")
        made = Global(_RENAMED.get(module, module), name)
        return self.names.setdefault(made.path, made)

    def _global(self, argument: str, place: int) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append((self._named(module, name, place), place))

    def _stack_global(self, argument: None, place: int) -> None:
        name, _ = self.stack.pop()
        module, begun = self.stack.pop()
        self.stack.append((self._named(module, name, place), begun))

    def _ext1(self, argument: int, place: int) -> None:
        self.stack.append((self._named("copyreg", f"extension {argument}", place), place))

    _ext2 = _ext4 = _ext1

    def _reduce(self, argument: None, place: int) -> None:
        arguments, _ = self.stack.pop()
        maker, begun = self.stack.pop()
        self.stack.append((Made(maker, arguments), begun))

    _newobj = _reduce

    def _newobj_ex(self, argument: None, place: int) -> None:
        named, _ = self.stack.pop()
        arguments, _ = self.stack.pop()
        maker, begun = self.stack.pop()
        self.stack.append((Made(maker, arguments, named), begun))

    def _inst(self, argument: str, place: int) -> None:
        module, _, name = argument.partition(" ")
        values, begun = self._popped()
        self.stack.append((Made(self._named(module, name, place), tuple(values)), begun))

    def _obj(self, argument: None, place: int) -> None:
        values, begun = self._popped()
        self.stack.append((Made(values[0], tuple(values[1:])), begun))

    def _persid(self, argument: str, place: int) -> None:
        self.stack.append((Persistent(argument), place))

    def _binpersid(self, argument: None, place: int) -> None:
        key, begun = self.stack.pop()
        self.stack.append((Persistent(key), begun))

    def _next_buffer(self, argument: None, place: int) -> None:
        raise Damaged("its pickle refers to buffers that are not in the file")

    _readonly_buffer = _next_buffer


def _paired(values: list[Node]) -> list[tuple[Node, Node]]:
    if len(values) % 2:
        raise Damaged("its pickle has a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _escaped_length(text: str) -> int:
    """Return how long protocol 0 writes a text."""
    escaped = sum(text.count(character) for character in "\\\0\n\r\x1a")
    return len(text.encode("raw-unicode-escape")) + 5 * escaped


def _text_length(name: str, argument: Any) -> int:
    if isinstance(argument, bool):
        return 3  # 00 and 01
    if name == "FLOAT":
        return max(len(repr(argument)), len("-0.12345678901234567e-300")) + 1
    return (
        max(1, int(abs(argument).bit_length() * 0.30103) + 1)
        + (argument < 0)
        + 1
        + (name == "LONG")
    )
