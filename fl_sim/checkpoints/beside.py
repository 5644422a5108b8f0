"""What a checkpoint holds beside its weights, counted: optimizer states, settings, metadata."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fl_sim.checkpoints.contents import Found, name_of
from fl_sim.checkpoints.finding import UNSEEN, Finding, Level
from fl_sim.checkpoints.nodes import (
    Global,
    Made,
    Node,
    Persistent,
    Table,
    attributes,
    children,
    is_small,
    leaf_bytes,
    members,
)
from fl_sim.checkpoints.storage import View, shown
from fl_sim.checkpoints.tensors import Entry, Tensors
from fl_sim.errors import legible

SMALL = 4096
"""Bytes beside the weights, all keys together, that settings and counters may take."""

_MOST_MOMENTS = 3
_LONG_NAME = 200
_PATH = re.compile(r"[A-Za-z_0-9.]{0,200}")
_LARGEST_VERSION = 1000


@dataclass
class Load:
    """What one thing beside the weights holds.

    Args:
        size: bytes of its text, numbers and bytes.
        entries: its tensors.
        storages: bytes of storages that it refers to directly.
    """

    size: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of its tensors, each byte of a storage once."""
        by_storage: dict[int, list[View]] = {}
        for entry in self.entries:
            for view in entry.views:
                by_storage.setdefault(id(view.storage), []).append(view)
        total = sum(entry.array.size for entry in self.entries if entry.array)
        for views in by_storage.values():
            mask = shown(views[0].storage, views)
            total += views[0].storage.size if mask is None else int(mask.sum())
        return total


class Scale:
    """Weighs nodes, each once.

    Args:
        tensors: recognises those of the pickle.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.seen: dict[int, Node] = {}

    def skip(self, nodes: Iterable[Node]) -> None:
        """Count these as weighed."""
        self.seen.update((id(node), node) for node in nodes)

    def weigh(self, *roots: Node) -> Load:
        """Return what nodes and everything below them hold that was not weighed before."""
        load, waiting = Load(), list(roots)
        while waiting:
            node = waiting.pop()
            if not is_small(node):
                if id(node) in self.seen:
                    continue
                self.seen[id(node)] = node
            load.size += leaf_bytes(node)
            if isinstance(node, Global):
                continue  # told by their names
            entry = self.tensors.entry(node)
            if entry is not None:
                load.entries.append(entry)
                waiting.extend(entry.spare)
                continue
            if isinstance(node, Persistent):
                found = self.tensors.storage(node)
                if found is not None:
                    storage, _, _, spare = found
                    whole = View(storage, torch.uint8, 0, (storage.size,), (1,))
                    load.entries.append(Entry("strided", (storage.size,), (whole,)))
                    waiting.extend(spare)
                    continue
            waiting.extend(children(node))
        return load


def beside(root: Node, main: Found, copies: list[Found], tensors: Tensors) -> list[Finding]:
    """Report everything that a pickle holds beside the weights and their copies.

    Args:
        root: the whole content.
        main: the weights.
        copies: further copies.
        tensors: recognises those of the pickle.
    """
    scale = Scale(tensors)
    for found in (main, *copies):
        scale.skip(found.nodes)
        scale.skip(key for key, _ in members(found.owner) if isinstance(key, str))
    spare = scale.weigh(*(item for f in (main, *copies) for _, e in f.entries for item in e.spare))
    findings = _attached(spare, "the tensors' own descriptions hold", main)
    findings += _metadata(main, copies, scale)
    scale.skip(found.owner for found in copies)
    loads: list[tuple[str, Node, Load]] = []
    trail = _trail(root, main)
    inside = {id(node) for _, node in trail}
    known = {id(found.owner) for found in copies}
    for path, node in trail:
        for key, value in members(node):
            if id(value) not in inside:
                label = ".".join((*path, name_of(key)))
                named = [] if id(value) in known else _key_load(key, main, node)
                loads.append((label, value, scale.weigh(value, *named)))
    scale.skip(node for _, node in trail)
    rest = scale.weigh(*(c for _, n in trail for c in _structure(n)))
    if rest.size or rest.entries:
        loads.append((f"the {main.kind} itself", None, rest))
    for found in copies:
        extra = scale.weigh(*children(found.owner))
        loads.append((".".join(found.path), None, extra))
    shapes = Counter(entry.shape for _, entry in main.entries)
    return findings + _told([(k, n, x) for k, n, x in loads if x.size or x.entries], shapes)


def _trail(root: Node, main: Found) -> list[tuple[tuple[str, ...], Node]]:
    """Return the containers from the root to the weights' own, with their paths."""
    trail: list[tuple[tuple[str, ...], Node]] = [((), root)]
    for depth, part in enumerate(main.path):
        node = trail[-1][1]
        if isinstance(node, list | tuple):
            inner = [item for index, item in enumerate(node) if str(index) == part]
        else:
            inner = [value for key, value in members(node) if name_of(key) == part]
            if isinstance(node, Made):
                inner += [item for i, item in enumerate(node.elements) if str(i) == part]
        if not inner:
            break
        trail.append((main.path[: depth + 1], inner[-1]))
    return trail


def _key_load(key: Node, main: Found, node: Node) -> list[Node]:
    """Return a key as a load of its own where it stands beside the weights."""
    return [key] if isinstance(key, str) and node is not main.owner else []


def _structure(node: Node) -> list[Node]:
    """Return what a container on the way to the weights holds beside keys and values."""
    if isinstance(node, Made):
        inside = [value for pair in members(node) for value in pair]
        known = {id(value) for value in inside if not isinstance(value, int | float | None)}
        parts = [*node.states, node.arguments, node.named, *node.elements]
        if attributes(node):
            parts = [node.arguments, node.named, *node.elements]
        return [part for part in parts if id(part) not in known]
    if isinstance(node, list | tuple):
        return list(node)
    return []


def _attached(load: Load, words: str, main: Found) -> list[Finding]:
    size = load.size + load.tensor_bytes
    if not size:
        return []
    what = f"{size} bytes that are part of no tensor: {words} them."
    return [Finding("file", "suspicious", what, None, {"bytes": size})]


def _metadata(main: Found, copies: list[Found], scale: Scale) -> list[Finding]:
    """Check what stands in attributes of the state dictionaries: versions of modules, and no more.

    ``_metadata`` gives every module's name and a small version number.
    """
    findings = []
    for found in (main, *copies):
        names = {name for name, _ in found.entries}
        for state in attributes(found.owner):
            odd: list[Node] = []
            for key, value in members(state):
                odd += _odd_versions(value, names) if key == "_metadata" else [key, value]
            scale.skip([state])
            load = scale.weigh(*odd, *([] if isinstance(state, Table) else [state]))
            findings += _attached(load, "attributes of the state dictionary hold", main)
            scale.weigh(state, *children(state))  # counted, as versions
    return findings


def _odd_versions(node: Node, names: set[str]) -> list[Node]:
    """Return what is not the name of a module with its version."""
    odd: list[Node] = list(attributes(node))
    modules = {name.rpartition(".")[0] for name in names if len(name) <= _LONG_NAME} | {""}
    parents = {m[:i] for m in modules for i in range(len(m)) if m[i] == "."} | modules
    foreign = 0
    for key, value in members(node):
        if not (isinstance(key, str) and _PATH.fullmatch(key)):
            odd.append(key)
        elif key not in parents:
            foreign += len(key)
        for name, version in members(value):
            known = isinstance(version, bool) or version is None
            if isinstance(version, int) and 0 <= version <= _LARGEST_VERSION:
                known = True
            if not (known and isinstance(name, str) and len(name) <= 40):
                odd += [name, version]
        odd += attributes(value)
    # Modules without entries (activations, poolings) are named too, but not at such length.
    if foreign > SMALL + 2 * sum(map(len, names)):
        odd += [key for key, _ in members(node)]
    return odd


def _told(
    loads: list[tuple[str, Node, Load]], shapes: Mapping[tuple[int, ...], int]
) -> list[Finding]:
    findings, small = [], []
    total = sum(
        load.size + load.tensor_bytes for _, node, load in loads if not _moments(node, load, shapes)
    )
    for label, node, load in loads:
        size = load.size + load.tensor_bytes
        quoted = f"'{legible(label, 80)}'"
        if _moments(node, load, shapes):
            what = (
                f"{quoted} beside the weights holds an optimizer's state, {size} bytes; a "
                f"model does not need it."
            )
            findings.append(Finding("file", "note", what, None, {"bytes": size, UNSEEN: size}))
        elif size > SMALL:
            what = f"{quoted} beside the weights holds {size} bytes; a model does not need it."
            findings.append(Finding("file", "suspicious", what, None, {"bytes": size}))
        else:
            small.append((quoted, size))
    if small:
        amount = sum(size for _, size in small)
        listed = ", ".join(f"{quoted} ({size})" for quoted, size in small[:12])
        more = f" and {len(small) - 12} more" if len(small) > 12 else ""
        level: Level = "suspicious" if amount > SMALL or total > 4 * SMALL else "note"
        what = f"{amount} bytes of settings and the like stand beside the weights: {listed}{more}."
        findings.append(Finding("file", level, what, None, {"bytes": amount}))
    return findings


def _moments(node: Node, load: Load, shapes: Mapping[tuple[int, ...], int]) -> bool:
    """Whether a load is an optimizer's: its tensors have the parameters' shapes, few times each."""
    if not load.entries or not _optimizer(node):
        return False
    if load.size > SMALL + 64 * len(load.entries) + 16 * sum(shapes.values()):
        return False
    counts = Counter(e.shape for e in load.entries if _elements(e) > 1)
    return all(count <= _MOST_MOMENTS * shapes.get(shape, 0) for shape, count in counts.items())


def _optimizer(node: Node) -> bool:
    """Whether a node has the form of ``Optimizer.state_dict()``, or is a list of such."""
    if isinstance(node, list | tuple):
        return bool(node) and all(_optimizer(item) for item in node)
    keys = {key for key, _ in members(node) if isinstance(key, str)}
    return {"state", "param_groups"} <= keys


def _elements(entry: Entry) -> int:
    total = 1
    for n in entry.shape:
        total *= n
    return total
