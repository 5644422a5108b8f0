"""Which network a state dictionary is of: told by shapes and order, whatever its entries are named.

A network is recognised only where it explains the file in both directions: each of its entries is
there in its shape, by its own name (a prefix apart) or by its place in the order of layers, and
what is there beside it does not look like more of the same network.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from math import isqrt

import torch

from fl_sim.auditing.subject import COUNTED
from fl_sim.errors import FlSimError
from fl_sim.models import skeleton
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec, Stem
from fl_sim.models.pixels import Normalization, normalization

State = dict[str, torch.Tensor]
SIZES = (28, 8, 12, 16, 24, 32, 48, 64, 96, 128, 224)
"""Image sides that are tried where shapes depend on it; the first that fits is taken."""

_USUAL = 224  # pixels
_SUFFICIENT = 0.8
_VARIABLE = 4  # entries whose shapes depend on images and outputs: the first layer, the last
_ASSUMED = 64  # image side of networks whose shapes do not depend on it
_MOST_CLASSES = 100_000
_EXPLAINED = 0.9  # of a file's elements, by order alone


@dataclass(frozen=True)
class Statement:
    """What the user says about the network; ``None`` where he does not.

    Args:
        model: its name: registered, torchvision's, or ``package.module:function``.
        classes: number of its outputs.
        channels: of its images.
        size: side of its images in pixels.
        stem: ``"default"`` or ``"small"``.
        normalize: how it takes pixels; see :func:`fl_sim.models.pixels.normalization`.
    """

    model: str | None = None
    classes: int | None = None
    channels: int | None = None
    size: int | None = None
    stem: Stem | None = None
    normalize: Normalization = None

    def of_pixels(self, spec: ModelSpec) -> ModelSpec:
        """Return a specification with what is said of how the network takes pixels."""
        if self.normalize is None:
            return spec
        mean, std = normalization(self.normalize, spec.channels)
        return spec.model_copy(update={"mean": mean, "std": std})


@dataclass(frozen=True)
class Match:
    """A network that explains a file.

    Args:
        spec: the network.
        names: the file's name of each of its entries.
        further: the file's names of entries that it does not have.
        size_known: whether the shapes, or the user, tell the image size.
        lacking: its entries that the file has not; of a network that was not stated, only counts
            of batches.
        by_order: whether names had to be told by the order of the layers.
    """

    spec: ModelSpec
    names: dict[str, str]
    further: tuple[str, ...] = ()
    size_known: bool = True
    lacking: tuple[str, ...] = field(default=())
    by_order: bool = False

    @property
    def missing(self) -> list[str]:
        """Its entries that the file has not, counts of batches apart."""
        return [name for name in self.lacking if not name.endswith(COUNTED)]


def recognise(state: State, stated: Statement | None = None) -> Match | None:
    """Return the network that explains a state dictionary; ``None`` if none does.

    This project's networks go before torchvision's, names before order, and a network without
    further entries before one that has some.

    Args:
        state: names, shapes and order count; the values do not.
        stated: what is known of the network; only networks that agree are tried.

    Raises:
        FlSimError: if a stated network does not exist.
    """
    stated = stated or Statement()
    file = _File(state)
    if stated.model is not None:
        return _best(_tried(stated.model, file, stated))
    own = _best(m for entry in MODELS.entries() for m in _tried(entry.name, file, stated))
    if own is not None and not own.further:
        return own
    from fl_sim.models.from_torchvision import PREFIX, names

    # Of a name that this project has too, torchvision's own network is tried as well.
    own_names = set(MODELS.names())
    tried = (PREFIX + name if name in own_names else name for name in names())
    others = (m for name in tried for m in _tried(name, file, stated))
    return _best([*([own] if own is not None else []), *others])


def fitting(state: State, spec: ModelSpec) -> Match:
    """Return how a stated network fits a file, however badly.

    Raises:
        FlSimError: if there is no such network.
    """
    file = _File(state)
    own = skeleton(spec)
    found = _match(spec, own, file)
    if found is not None:
        return found
    prefix = max(file.prefixes(own), key=lambda p: sum(p + n in state for n in own))
    names = {n: prefix + n for n in own if prefix + n in state}
    taken = set(names.values())
    return Match(
        spec,
        names,
        tuple(n for n in state if n not in taken),
        lacking=tuple(n for n in own if n not in names),
    )


class _File:
    """What a file has, in a form that networks are compared with."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        # All but counts of batches.
        self.tensors = [n for n, t in state.items() if t.dim() or t.is_floating_point()]

    def prefixes(self, own: State) -> list[str]:
        """Return what may stand before every name of a network; nothing, first."""
        first = next((n for n in own if not n.endswith(COUNTED)), "")
        found = [n[: -len(first)] for n in self.shapes if n.endswith("." + first)]
        return ["", *found]

    def sizes(self) -> list[int]:
        """Return image sides to try: the usual ones, and those that a flat input layer tells."""
        flat = {
            isqrt(shape[1] // channels)
            for shape in self.shapes.values()
            for channels in (1, 3)
            if len(shape) == 2 and shape[1] == channels * isqrt(shape[1] // channels) ** 2
        }
        return [*SIZES, *sorted(side for side in flat - set(SIZES) if 8 <= side <= 512)]

    def classes(self) -> list[int]:
        """Return numbers of outputs to try: of the last layers, the likeliest first."""
        outputs = [
            shape[0] for shape in self.shapes.values() if len(shape) in (1, 2, 4) and shape[0]
        ]
        last = [*reversed(outputs)][:12] + [s[0] for s in self.shapes.values() if len(s) == 2]
        return [n for n in dict.fromkeys(last) if n <= _MOST_CLASSES][:6]

    def channels(self) -> list[int]:
        """Return numbers of image channels to try."""
        found = {shape[1] for shape in self.shapes.values() if len(shape) == 4} & {1, 3}
        return sorted(found or {1, 3}, reverse=True)


def _tried(name: str, file: _File, stated: Statement) -> Iterator[Match]:
    """Return how a network in its variants explains a file, where it does."""
    entry = MODELS.get(name)
    if not _comparable(name, file):
        return
    for stem in [stated.stem] if stated.stem else entry.stems:
        if stem in entry.stems:
            yield from _sized(name, entry, stem, file, stated)


def _comparable(name: str, file: _File) -> bool:
    """Whether most of a network's shapes are there, whatever its images and outputs.

    It spares building each network in many variants.
    """
    wanted = _usual_shapes(name)
    if wanted is None:
        return True
    there = Counter(file.shapes.values())
    return wanted.total() - (wanted - there).total() >= _SUFFICIENT * wanted.total() - _VARIABLE


@cache
def _usual_shapes(name: str) -> Counter[tuple[int, ...]] | None:
    """Return how often each shape is in a network as usual; ``None`` if it cannot be of that size.

    Kept for all networks: every file is compared with them.
    """
    try:
        own = skeleton(_spec(name, MODELS.get(name), "default", 3, _USUAL, 2))
    except FlSimError:
        return None
    return Counter(tuple(t.shape) for n, t in own.items() if not n.endswith(COUNTED))


def _sized(
    name: str, entry: ModelEntry, stem: Stem, file: _File, stated: Statement
) -> Iterator[Match]:
    base = max(_ASSUMED, entry.min_sizes[stem])
    free = stated.size is None and _size_free(name, entry, stem, base)
    found: list[Match] = []
    # Where large images all have the same shapes, one of these is tried first and tells no size.
    for sides in [[base]] * free + [[stated.size] if stated.size else file.sizes()]:
        for classes in [stated.classes] if stated.classes else file.classes():
            for channels in [stated.channels] if stated.channels else file.channels():
                for side in sides:
                    spec = _spec(name, entry, stem, channels, side, classes)
                    with suppress(FlSimError):
                        match = _match(spec, skeleton(spec), file)
                        found += [match] if match is not None else []
        if found:
            break
    known = bool(stated.size) or (sides != [base] and len({m.spec.size for m in found}) == 1)
    yield from (replace(match, size_known=known) for match in found)


def _spec(
    name: str, entry: ModelEntry, stem: Stem, channels: int, side: int, classes: int
) -> ModelSpec:
    return ModelSpec(
        name=name, channels=channels, size=side, classes=classes, stem=stem, task=entry.tasks[0]
    )


def _size_free(name: str, entry: ModelEntry, stem: Stem, base: int) -> bool:
    """Whether a network has the same shapes for images of every size."""
    shapes = []
    for side in (base, 2 * base):
        try:
            own = skeleton(_spec(name, entry, stem, 3, side, 2))
        except FlSimError:
            return False
        shapes.append([tuple(t.shape) for t in own.values()])
    return shapes[0] == shapes[1]


def _match(spec: ModelSpec, own: State, file: _File) -> Match | None:
    for prefix in file.prefixes(own):
        found = _by_name(spec, own, file, prefix)
        if found is not None:
            return found
    return _by_order(spec, own, file)


def _by_name(spec: ModelSpec, own: State, file: _File, prefix: str) -> Match | None:
    names = {}
    for name, tensor in own.items():
        shape = file.shapes.get(prefix + name)
        if shape == tuple(tensor.shape):
            names[name] = prefix + name
        elif shape is not None or not name.endswith(COUNTED):
            return None
    return _explained(spec, own, file, names)


def _by_order(spec: ModelSpec, own: State, file: _File) -> Match | None:
    """Match a network by the sequence of its shapes, at one place of the file's only."""
    registered = [n for n in own if not n.endswith(COUNTED)]
    by_layer = _in_order(registered)
    for wanted, there in (
        (registered, file.tensors),
        (by_layer, _in_order(file.tensors)),
        (by_layer, _in_order(sorted(file.tensors, key=_natural))),  # safetensors sorts names
    ):
        shapes = [tuple(own[n].shape) for n in wanted]
        places = [
            first
            for first in range(len(there) - len(wanted) + 1)
            if all(file.shapes[n] == s for n, s in zip(there[first:], shapes, strict=False))
        ]
        if len(places) == 1:
            names = dict(zip(wanted, there[places[0] :], strict=False))
            elements = sum(file.state[n].numel() for n in names.values())
            if elements >= _EXPLAINED * sum(t.numel() for t in file.state.values()):
                return _explained(spec, own, file, names | _counts(own, file), True)
    return None


def _counts(own: State, file: _File) -> dict[str, str]:
    """Pair counts of batches, which have no shape to be told by, if there are as many."""
    wanted = [n for n in own if n.endswith(COUNTED)]
    there = [n for n in file.shapes if n not in file.tensors]
    return dict(zip(wanted, there, strict=True)) if len(wanted) == len(there) else {}


def _explained(
    spec: ModelSpec, own: State, file: _File, names: dict[str, str], by_order: bool = False
) -> Match | None:
    """Return a match, unless what is left looks like more of the same network."""
    taken = set(names.values())
    further = tuple(n for n in file.shapes if n not in taken)
    if continues(taken, further, file.shapes):
        return None
    lacking = tuple(n for n in own if n not in names)
    return Match(spec, names, further, lacking=lacking, by_order=by_order)


def continues(
    taken: Iterable[str], further: Iterable[str], shapes: dict[str, tuple[int, ...]]
) -> bool:
    """Whether further entries are whole blocks beside a network's own, as in a larger network.

    ResNet34 has all entries of ResNet18, and more blocks of the same entries. A block is told by
    the names below its number, as of ``layer1.2.``; half of one is none.

    Args:
        taken: names of a network's entries in the file.
        further: names of the file's other entries.
        shapes: of the file's entries.
    """
    blocks: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for name in taken:
        for block, leaf in _blocks(name):
            blocks[block].add((leaf, len(shapes[name])))
    kinds = defaultdict(list)
    for block, leaves in blocks.items():
        kinds[re.sub(r"\d+", "#", block)].append(leaves)
    more: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for name in further:
        for block, leaf in _blocks(name):
            if block not in blocks:
                more[block].add((leaf, len(shapes[name])))
    return any(
        len(leaves) > 2 and any(leaves >= known for known in kinds[re.sub(r"\d+", "#", block)])
        for block, leaves in more.items()
        if re.sub(r"\d+", "#", block) in kinds
    )


def _blocks(name: str) -> Iterator[tuple[str, str]]:
    """Return every numbered module that a name lies in, and its name there."""
    parts = name.split(".")
    for end in range(1, len(parts) - 1):
        if any(c.isdigit() for c in parts[end - 1]):
            yield ".".join(parts[:end]), ".".join(parts[end:])


def _best(matches: Iterable[Match]) -> Match | None:
    """Return the match with the fewest further entries, by names if possible; the first of them."""
    best: Match | None = None
    for match in matches:
        if best is None or _rank(match) < _rank(best):
            best = match
    return best


def _rank(match: Match) -> tuple[int, bool, int]:
    return len(match.further), match.by_order, len(match.lacking)


def _in_order(names: Iterable[str]) -> list[str]:
    """Order names by layer as they come, and within a layer as usual."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [name for own in layers.values() for name in sorted(own, key=_within_layer)]


def _within_layer(name: str) -> tuple[int, str]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    leaf = name.rpartition(".")[2]
    return (leaves.index(leaf) if leaf in leaves else len(leaves), leaf)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names with numbers by these: ``layer10`` after ``layer9``."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name) if p]
