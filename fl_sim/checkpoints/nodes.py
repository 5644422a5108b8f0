"""What a pickle describes, as data: nothing here can be called, and nothing is looked up."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Node = Any
"""A leaf (``None``, bool, int, float, str, bytes), a list, a tuple, or one of the classes below."""


@dataclass(eq=False, slots=True)
class Global:
    """The name of a class or function; never the thing itself."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Table:
    """A dictionary: pairs in their order, doubled keys included.

    Args:
        pairs: keys and values.
        states: attributes that were set on it.
    """

    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    states: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Made:
    """What calling a class or function would have given: a stand-in that holds what came along.

    Args:
        maker: mostly a :class:`Global`.
        arguments: positional ones, a tuple where the pickle is well formed.
        named: keyword arguments, or ``None``.
        states: what was set on it, in order.
        pairs: items that were set.
        elements: elements that were appended or added.
    """

    maker: Node
    arguments: Node = ()
    named: Node = None
    states: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    elements: list[Node] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Name of its class or function; ``""`` where it is none."""
        maker = self.maker
        if isinstance(maker, Global) and maker.path == "copyreg._reconstructor":
            first = self.arguments[0] if isinstance(self.arguments, tuple) and self.arguments else 0
            return first.path if isinstance(first, Global) else ""
        return maker.path if isinstance(maker, Global) else ""


@dataclass(eq=False, slots=True)
class Persistent:
    """A reference to something outside the pickle; torch's are storages."""

    key: Node


DICTIONARIES = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
)


def members(node: Node) -> list[tuple[Node, Node]]:
    """Return keys and values of a dictionary, or attributes and items of an object."""
    if isinstance(node, Table):
        return node.pairs
    if not isinstance(node, Made):
        return []
    inside = [*_constructor_pairs(node), *node.pairs]
    if node.path not in DICTIONARIES:
        for state in node.states:
            for part in state if isinstance(state, tuple) else (state,):  # __slots__ give two
                inside += part.pairs if isinstance(part, Table) else []
    return inside


def attributes(node: Node) -> list[Node]:
    """Return what was set on a dictionary beside its items."""
    if isinstance(node, Table) or (isinstance(node, Made) and node.path in DICTIONARIES):
        return node.states
    return []


def children(node: Node) -> Iterator[Node]:
    """Return everything that a node holds directly."""
    match node:
        case list() | tuple():
            yield from node
        case Table():
            for pair in node.pairs:
                yield from pair
            yield from node.states
        case Made():
            yield from (node.maker, node.arguments, node.named)
            yield from node.states
            for pair in node.pairs:
                yield from pair
            yield from node.elements
        case Persistent():
            yield node.key


def walk(*roots: Node) -> Iterator[Node]:
    """Return every node below, each once, however deep or tangled; short leaves where they stand.

    Python keeps one object for each small number and letter, so these say nothing by identity.
    """
    seen: set[int] = set()
    waiting = list(reversed(roots))
    while waiting:
        node = waiting.pop()
        if not is_small(node):
            if id(node) in seen:
                continue
            seen.add(id(node))
            waiting.extend(reversed(list(children(node))))
        yield node


def leaf_bytes(node: Node) -> int:
    """Return how much a leaf can hold; 0 for what is none."""
    match node:
        case bool() | None:
            return 0
        case str():
            return len(node.encode("utf-8", "surrogatepass"))
        case bytes():
            return len(node)
        case int():
            return max(1, (node.bit_length() + 7) // 8)
        case float():
            return 8
        case _:
            return 0


def is_small(node: Node) -> bool:
    """Return whether Python may keep one object for all leaves like this one."""
    if isinstance(node, str | bytes | tuple):
        return len(node) <= (0 if isinstance(node, tuple) else 1)
    return node is None or isinstance(node, bool | int | float)


def _constructor_pairs(node: Made) -> list[tuple[Node, Node]]:
    """Return what an old OrderedDict was made of: a list of lists of two."""
    if node.path not in DICTIONARIES or not isinstance(node.arguments, tuple):
        return []
    found = []
    for argument in node.arguments:
        if isinstance(argument, Table):
            found += argument.pairs
        elif isinstance(argument, list):
            found += [(p[0], p[1]) for p in argument if isinstance(p, list | tuple) and len(p) == 2]
    return found
