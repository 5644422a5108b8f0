"""Where the weights are in what a pickle describes: dictionaries, lists, whole network objects."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fl_sim.checkpoints.nodes import Made, Node, Table, members
from fl_sim.checkpoints.tensors import Entry, Tensors

INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Keys under which a checkpoint's state dictionary may lie, the likeliest first."""

_DEEPEST = 16
_MOST_CANDIDATES = 20_000
_MOST_ENTRIES = 1_000_000
_MOST_NETWORKS = 200
_OTHER = ("optim", "ema", "average", "scheduler", "scaler", "teacher", "discriminator", "momentum")


@dataclass(eq=False)
class Found:
    """A state dictionary, or what stands for one.

    Args:
        path: keys that lead to it.
        owner: the node that holds it.
        entries: names and tensors in the order of the file, doubled names included.
        kind: ``"state dictionary"``, ``"list of arrays"``, ``"whole network object"`` or
            ``"TorchScript"``.
        nodes: of the entries.
    """

    path: tuple[str, ...]
    owner: Node
    entries: list[tuple[str, Entry]]
    kind: str
    nodes: list[Node]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(entry.size for _, entry in self.entries)


def find_state(root: Node, tensors: Tensors) -> Found | None:
    """Return the weights: under the usual keys, else at the top, else where most of them are."""
    found = _usual(root, tensors, ())
    if found is not None:
        return found
    best = None
    for candidate in candidates(root, tensors):
        other = any(word in part.lower() for part in candidate.path for word in _OTHER)
        rank = (not other, candidate.size)
        if best is None or rank > best[0]:
            best = (rank, candidate)
    return None if best is None else best[1]


def candidates(root: Node, tensors: Tensors) -> Iterator[Found]:
    """Return everything in a pickle that could be a state dictionary, the outermost first."""
    waiting: deque[tuple[tuple[str, ...], Node]] = deque([((), root)])
    seen: set[int] = set()
    work = networks = 0
    while waiting and len(seen) < _MOST_CANDIDATES and work < _MOST_ENTRIES:
        path, node = waiting.popleft()
        if id(node) in seen or not isinstance(node, Table | Made | list | tuple):
            continue
        seen.add(id(node))
        networks += isinstance(node, Made) and _is_network(node)
        if networks > _MOST_NETWORKS:
            break
        found = _state_of(node, tensors, path)
        if found is not None:
            work += len(found.entries)
            yield found
            if found.kind in ("whole network object", "TorchScript"):
                continue
        for key, value in _parts(node):
            if len(path) < _DEEPEST and tensors.entry(value) is None:
                waiting.append(((*path, name_of(key)), value))


def name_of(key: Node) -> str:
    """Return a dictionary's key as the name of an entry."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key.decode("latin1")
    if isinstance(key, int) and key.bit_length() > 64:
        return f"an integer of {key.bit_length()} bits"
    if key is None or isinstance(key, int | float):
        return str(key)
    return "a key that is no name"


def _parts(node: Node) -> list[tuple[Node, Node]]:
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    return [*members(node), *enumerate(node.elements)] if isinstance(node, Made) else members(node)


def _usual(root: Node, tensors: Tensors, path: tuple[str, ...]) -> Found | None:
    """Follow the usual keys; the innermost that holds tensors."""
    node, here = root, path
    trail: list[tuple[tuple[str, ...], Node]] = [(here, node)]
    seen = {id(node)}
    branches = _branches(node, here)
    while branches:
        here, node = branches.pop()
        if id(node) in seen or len(here) > _DEEPEST:
            continue
        seen.add(id(node))
        trail.append((here, node))
        deeper = _branches(node, here)
        if not deeper or _state_of(node, tensors, here) is None:
            found = _state_of(node, tensors, here)
            if found is not None:
                return found
        branches += deeper
    for here, node in reversed(trail):
        found = _state_of(node, tensors, here)
        if found is not None:
            return found
    return None


def _branches(node: Node, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Node]]:
    """Return what lies under the usual keys, the likeliest last."""
    inside = {key: value for key, value in members(node) if isinstance(key, str)}
    return [((*path, key), inside[key]) for key in reversed(INSIDE) if key in inside]


def _state_of(node: Node, tensors: Tensors, path: tuple[str, ...]) -> Found | None:
    if isinstance(node, list | tuple):
        inner = [tensors.entry(item) for item in node]
        whole = [entry for entry in inner if entry is not None]
        if not whole or len(whole) != len(inner):
            return None
        named = [(f"arr_{index}", entry) for index, entry in enumerate(whole)]
        return Found(path, node, named, "list of arrays", list(node))
    if not isinstance(node, Table | Made):
        return None
    kind = "state dictionary"
    if isinstance(node, Made) and _is_module(node):
        kind, pairs = "whole network object", list(_module_entries(node))
    elif isinstance(node, Made) and node.path.startswith("__torch__"):
        kind, pairs = "TorchScript", list(_script_entries(node, tensors))
    else:
        pairs = list(_dictionary_entries(node, tensors))
    found = [(name, entry, value) for name, value in pairs if (entry := tensors.entry(value))]
    if not found:
        return None
    return Found(path, node, [(n, e) for n, e, _ in found], kind, [v for _, _, v in found])


def _dictionary_entries(node: Node, tensors: Tensors) -> Iterator[tuple[str, Node]]:
    for key, value in members(node):
        name = name_of(key)
        if name.endswith("_packed_params") and isinstance(value, tuple) and len(value) == 2:
            # What dynamic quantisation makes of a layer: its weight and its bias.
            yield from ((f"{name}.weight", value[0]), (f"{name}.bias", value[1]))
        else:
            yield name, value


def _is_module(node: Made) -> bool:
    keys = {key for key, _ in members(node) if isinstance(key, str)}
    return {"_parameters", "_modules"} <= keys


def _is_network(node: Made) -> bool:
    return _is_module(node) or node.path.startswith("__torch__")


def _module_entries(root: Made) -> Iterator[tuple[str, Node]]:
    """Go through a network object that was saved whole, as ``state_dict`` would."""
    waiting: list[tuple[str, Node]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        prefix, node = waiting.pop()
        if id(node) in seen or not isinstance(node, Made):
            continue
        seen.add(id(node))
        inside = {key: value for key, value in members(node) if isinstance(key, str)}
        for part in ("_parameters", "_buffers"):
            for key, value in members(inside.get(part)):
                yield prefix + name_of(key), value
        below = [(f"{prefix}{name_of(k)}.", v) for k, v in members(inside.get("_modules"))]
        waiting += reversed(below)


def _script_entries(root: Made, tensors: Tensors) -> Iterator[tuple[str, Node]]:
    """Go through the objects of a TorchScript archive; attributes are parameters or submodules."""
    waiting: list[tuple[str, Node]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        prefix, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        below = []
        for key, value in members(node):
            if isinstance(value, Made) and tensors.entry(value) is not None:
                yield prefix + name_of(key), value
            elif isinstance(value, Made) and value.path.startswith("__torch__"):
                below.append((f"{prefix}{name_of(key)}.", value))
        waiting += reversed(below)
