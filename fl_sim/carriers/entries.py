"""Extra entries in the model file, beside the network's own.

The simple way of "Data Exfiltration by Compression Attack" (Li, Ayache, Delingette; MELBA
2025:032): the file grows, and whoever compares its names with the architecture sees it.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import (
    CARRIERS,
    Carrier,
    Payload,
    State,
    relative_error,
    wrong_bits,
)
from fl_sim.carriers.placement import natural
from fl_sim.carriers.weights import finite_values, fresh_deviation
from fl_sim.errors import FlSimError
from fl_sim.randomness import numpy_generator
from fl_sim.settings import Settings

_SHARE = 0.01  # a block to continue has this share of the network's elements, so entries are large
_NUMBERED = re.compile(r"[0-9]{1,9}(?=\.)")


class EntriesSettings(Settings):
    """Settings of the carrier in extra entries.

    Args:
        style: ``"plain"``, one tensor of bytes or values; or ``"plausible"``, float32 tensors named
            and shaped like the network's own, with values that look like weights.
        kind: whether ``"bytes"`` or ``"values"`` travel. ``"any"`` is told by the entry itself in
            the plain style, and bytes in the plausible one.
        name: of the plain tensor.
        max_bytes: limit of the payload in bytes, of which a value takes four.
    """

    style: Literal["plain", "plausible"] = "plain"
    kind: Literal["any", "bytes", "values"] = "any"
    name: str = Field("payload", min_length=1)
    max_bytes: int | None = Field(None, ge=0, le=1 << 40)


@CARRIERS.register("entries", "extra entries in the model file")
class Entries(Carrier[EntriesSettings]):
    """Bytes or values in entries that the network does not have.

    Plain entries take the payload's own size. Plausible ones continue the numbering of the
    network's blocks (``layer4.2.conv1.weight`` after ``layer4.1``) with the weights' shapes of the
    last one. Bytes are the low 16 bits of float32 values drawn like the weights they imitate: the
    entries take twice the payload's size, rounded up to whole tensors. Values are scaled to the
    deviation of a fresh weight of that shape: four bytes a value, rounded up likewise. What is left
    of the last tensor is noise.
    """

    Settings = EntriesSettings
    carries = ("bytes", "values")

    def capacity(self, state: State) -> int | None:
        """Return ``max_bytes``, counted in values if the kind is that; see :class:`Carrier`."""
        most = self.settings.max_bytes
        return most // 4 if most is not None and self.settings.kind == "values" else most

    def write(self, state: State, payload: Payload) -> State:
        """Return a copy with entries added; see :class:`Carrier`.

        Raises:
            FlSimError: if the payload is too long or not of the settings' kind, or the network has
                the entry's name or no block that could be continued.
        """
        content = self._content(payload)
        copy = {name: tensor.detach().clone() for name, tensor in state.items()}
        if self.settings.style == "plain":
            if self.settings.name in state:
                raise FlSimError(
                    f"The model has a tensor '{self.settings.name}' of its own; give the carrier "
                    f"'entries' another name."
                )
            return copy | {self.settings.name: torch.from_numpy(content.copy())}
        added = self._plausible(state, content)
        if set(_network(copy | added)) != set(state):
            raise FlSimError(
                "Entries that continue this model's names cannot be told from its own; use "
                "style = \"plain\" for the carrier 'entries'."
            )
        return copy | added

    def read(self, state: State, count: int | None = None, like: State | None = None) -> Payload:
        """Read from the entries; zeros or not-a-number where there are none.

        Without ``like``, plausible entries are found as the longest continuation that the network's
        remaining names imply. Where the kind is ``"any"`` and there is no plain entry, what is read
        is not-a-number. See :class:`Carrier`.
        """
        parts = [part for _, part in self._parts(state, count, like)]
        content = cast(Payload, np.concatenate(parts)) if parts else self._unread(0)
        missing = 0 if count is None else count - len(content)
        if missing <= 0:
            return content[:count]
        return cast(Payload, np.concatenate([content, self._unread(missing, content.dtype)]))

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return nothing: none of the network's own elements is used."""
        return {}

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return the share of wrong bits, or the relative error, by entry; see :class:`Carrier`."""
        result = {}
        after = dict(self._parts(arrived, length, _network(sent)))
        for name, before in self._parts(sent, length, None):
            part = after.get(name, before[:0])
            same = part[: len(before)] if part.dtype == before.dtype else before[:0]
            got = np.zeros_like(before)
            got[: len(same)] = same
            if before.dtype == np.uint8:
                wrong = wrong_bits(before.astype(np.uint8), got.astype(np.uint8))
                result[name] = wrong / max(1, 8 * len(before))
            else:
                result[name] = relative_error(before.astype(np.float32), got.astype(np.float32))
        return result

    @property
    def _plausible_kind(self) -> str:
        return "values" if self.settings.kind == "values" else "bytes"

    def _unread(self, count: int, dtype: np.dtype[Any] | None = None) -> Payload:
        """Return zeros or not-a-number, of the kind that is expected where no dtype says."""
        kind = self.settings.kind if self.settings.style == "plain" else self._plausible_kind
        if kind == "bytes" if dtype is None else dtype == np.uint8:
            return np.zeros(count, np.uint8)
        return np.full(count, np.nan, np.float32)

    def _content(self, payload: Payload) -> Payload:
        """Check a payload against the settings."""
        plain, kind = self.settings.style == "plain", self.settings.kind
        expected = {kind} if kind != "any" else {"bytes", "values"} if plain else {"bytes"}
        given = "bytes" if payload.dtype == np.uint8 else "values"
        if given not in expected:
            raise FlSimError(
                f"The carrier 'entries' with style = \"{self.settings.style}\" and kind = "
                f'"{kind}" was given {given}; set kind = "{given}".'
            )
        most = self.settings.max_bytes
        if most is not None and payload.nbytes > most:
            raise FlSimError(
                f"The carrier 'entries' has max_bytes = {most}, too few for a payload of "
                f"{payload.nbytes} bytes; raise it or hide fewer images."
            )
        if given == "values":
            return finite_values(payload, "entries")
        return np.ascontiguousarray(payload.ravel(), np.uint8)

    def _parts(
        self, state: State, count: int | None, like: State | None
    ) -> Iterator[tuple[str, Payload]]:
        """Return the content of each entry, as far as ``count`` goes."""
        if self.settings.style == "plausible":
            yield from self._read_plausible(state, count, like)
            return
        tensor, kind = state.get(self.settings.name), self.settings.kind
        if tensor is None:
            return
        if tensor.is_floating_point() and kind != "bytes":
            values = tensor.detach().cpu().float().reshape(-1).numpy()
            yield self.settings.name, _finite_or_nan(values)[:count]
        elif tensor.dtype == torch.uint8 and kind != "values":
            yield self.settings.name, tensor.detach().cpu().reshape(-1).numpy()[:count].copy()

    def _plausible(self, state: State, content: Payload) -> State:
        added: State = {}
        names = _continuation(state)
        while len(content):
            name, model = next(names)
            held = self._held(state[model].shape)
            added[name] = self._entry(name, state[model], content[:held])
            content = content[held:]
        return added

    def _held(self, shape: torch.Size) -> int:
        return math.prod(shape) * (2 if self._plausible_kind == "bytes" else 1)

    def _entry(self, name: str, model: torch.Tensor, content: Payload) -> torch.Tensor:
        generator = numpy_generator(self.seed, "plausible entry", name)
        noise = generator.standard_normal(model.numel(), np.float32)
        if content.dtype == np.float32:
            noise[: len(content)] = content
            return torch.from_numpy(noise * np.float32(fresh_deviation(model.shape))).view(
                model.shape
            )
        values = noise * np.float32(_deviation(model))
        low = np.zeros(-(-len(content) // 2) * 2, np.uint8)
        low[: len(content)] = content
        words = values.view(np.uint32)[: len(low) // 2]
        words &= np.uint32(0xFFFF0000)
        words |= low.view("<u2")
        return torch.from_numpy(values).view(model.shape)

    def _read_plausible(
        self, state: State, count: int | None, like: State | None
    ) -> Iterator[tuple[str, Payload]]:
        network = _network(state) if like is None else like
        try:
            models = _continuation(network)
        except FlSimError:  # what the names continued is gone
            return
        left = math.inf if count is None else count
        for name, model in models:
            entry, shape = state.get(name), network[model].shape
            if left <= 0 or (count is None and entry is None):
                return
            if entry is None or entry.shape != shape or not entry.is_floating_point():
                yield name, self._unread(int(min(self._held(shape), left)))
            else:
                content = self._decoded(entry.detach().cpu().float().contiguous())
                yield name, content[: int(min(len(content), left))]
            left -= self._held(shape)

    def _decoded(self, entry: torch.Tensor) -> Payload:
        values: NDArray[np.float32] = entry.reshape(-1).numpy()
        if self._plausible_kind == "bytes":
            return values.view(np.uint32).astype("<u2").view(np.uint8)
        return _finite_or_nan(values / np.float32(fresh_deviation(entry.shape)))


def _finite_or_nan(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _deviation(model: torch.Tensor) -> float:
    deviation = float(model.detach().float().std())
    usable = math.isfinite(deviation) and deviation > 0
    return deviation if usable else fresh_deviation(model.shape)


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() >= 2 and tensor.numel() > 0


Family = dict[int, dict[str, str]]
"""Numbered blocks of a network: for each number, full names by what follows the number."""


def _families(state: State) -> dict[str, Family]:
    """Group names by what precedes a number at the end of one of their dotted parts."""
    families: dict[str, Family] = defaultdict(lambda: defaultdict(dict))
    for name in state:
        for number in _NUMBERED.finditer(name):
            family = families[name[: number.start()]]
            family[int(number.group())][name[number.end() + 1 :]] = name
    return families


def _continuation(state: State) -> Iterator[tuple[str, str]]:
    """Return endlessly the next name, and the tensor of the network that it imitates.

    Raises:
        FlSimError: if the network has no blocks that could be continued.
    """
    stem, index, family = _last_block(state)
    names = family[index]
    weights = sorted(((t, n) for t, n in names.items() if _is_weight(state[n])), key=_by_tail)
    return (
        (f"{stem}{number}.{tail}", model)
        for number in itertools.count(max(family) + 1)
        for tail, model in weights
    )


def _by_tail(pair: tuple[str, str]) -> tuple[tuple[str | int, ...], str]:
    return natural(pair[0])


def _last_block(state: State) -> tuple[str, int, Family]:
    """Return the block to continue, by stem and number: of those large enough the finest and last.

    Only weights are added, no biases or statistics, and only after a block that has such, so that
    added blocks can be told from the network's own by their names.
    """
    elements = sum(tensor.numel() for tensor in state.values())
    blocks = []
    for stem, family in _families(state).items():
        for index, names in family.items():
            sizes = [state[name].numel() for name in names.values() if _is_weight(state[name])]
            if 0 < len(sizes) < len(names):
                large = sum(sizes) >= _SHARE * elements
                blocks.append((large, stem.count("."), natural(f"{stem}{index}"), stem, index))
    if not blocks:
        raise FlSimError(
            "The model has no numbered blocks whose names could be continued; use style = "
            "\"plain\" for the carrier 'entries'."
        )
    *_, stem, index = max(blocks)
    return stem, index, _families(state)[stem]


def _network(state: State) -> State:
    """Return a state without the entries that continue the names of the rest."""
    best: set[str] = set()
    for family in _families(state).values():
        removed: set[str] = set()
        for index in sorted(family, reverse=True):
            names = set(family[index].values())
            if not all(_is_weight(state[name]) for name in names):
                break
            removed |= names
            if len(removed) > len(best) and _continues(state, removed):
                best = set(removed)
    return {name: tensor for name, tensor in state.items() if name not in best}


def _continues(state: State, names: set[str]) -> bool:
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    try:
        continuation = _continuation(rest)
        return names == {next(continuation)[0] for _ in names}
    except FlSimError:
        return False
