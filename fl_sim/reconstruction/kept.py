"""Shadow heads on disk: blocks that are written whole, read in part, and known by what made them.

A block is a safetensors file of so many heads: which images each was trained on, and its
coefficients. Its name and header hold the hash of all that they follow from, so that other heads
are never taken for these; a run that was interrupted goes on after the last block.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_sim.errors import FlSimError, printable
from fl_sim.files import write_atomically
from fl_sim.progress import Progress, piece

ROWS = "rows"
_BLOCK = 2**23
"""Numbers in a block: 32 MiB of float32."""
_HEADER = "fl_sim.shadows"
_VERSION = 1

Made = Callable[[range], dict[str, torch.Tensor]]
"""``made(heads)`` gives what is kept of some heads, by name, one entry a head."""


def identity_of(kind: str, settings: Mapping[str, Any], *arrays: NDArray[Any]) -> str:
    """Return the hash of what shadow heads follow from, as hexadecimal digits.

    Args:
        kind: of heads.
        settings: plain values, with seeds.
        arrays: features, labels, sets.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, kind, settings], sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Blocks:
    """One kept tensor of many heads, of which slices are read as they are asked for.

    Args:
        folder: of the blocks.
        identity: that each must have.
        name: of the tensor in the files.
        shape: of all of it, ``(heads, ...)``.
        rows: which images each head was trained on, ``[heads, N]``.
        block: heads in a file.
    """

    folder: Path
    identity: str
    name: str
    shape: tuple[int, ...]
    rows: NDArray[np.int32]
    block: int

    def path(self, number: int) -> Path:
        """Return the file of a block, by its number."""
        return self.folder / f"{self.identity[:16]}-{number:05d}.safetensors"

    def heads(self, number: int) -> range:
        """Return which heads a block has."""
        return range(number * self.block, min((number + 1) * self.block, self.shape[0]))

    def __len__(self) -> int:
        return -(-self.shape[0] // self.block)

    def __getitem__(self, heads: slice, /) -> torch.Tensor:
        """Read some heads.

        Raises:
            FlSimError: if a block is missing, damaged, or of other heads.
        """
        wanted = range(*heads.indices(self.shape[0]))
        parts = []
        for number in range(wanted.start // self.block, (wanted.stop - 1) // self.block + 1):
            own = self.heads(number)
            first, last = max(wanted.start, own.start), min(wanted.stop, own.stop)
            parts.append(self._read(number, first - own.start, last - own.start))
        return torch.cat(parts) if parts else torch.empty(0, *self.shape[1:])

    def whole(self, number: int) -> bool:
        """Whether a block is there; one that is damaged or of other heads is not."""
        try:
            self._read(number, 0, 1)
        except FlSimError:
            return False
        return True

    def _read(self, number: int, first: int, last: int) -> torch.Tensor:
        """Read some heads of one block; no more is taken from the file than their shape says."""
        path, own = self.path(number), self.heads(number)
        try:
            with safe_open(path, framework="pt") as file:
                if dict(file.metadata() or {}).get(_HEADER) != self.identity:
                    raise _other(path)
                kept, rows = file.get_slice(self.name), file.get_slice(ROWS)
                shapes = [tuple(kept.get_shape()), tuple(rows.get_shape())]
                types = [kept.get_dtype(), rows.get_dtype()]
                expected = [(len(own), *self.shape[1:]), (len(own), self.rows.shape[1])]
                if shapes != expected or types != ["F32", "I32"]:
                    raise _other(path)
                found, trained_on = kept[first:last], rows[first:last]
        except (SafetensorError, OSError) as error:
            said = printable(str(error).partition("\n")[0])[:200]
            raise FlSimError(
                f"The kept shadow heads {printable(str(path))} cannot be read: {said}; remove the "
                f"file, and they are trained again."
            ) from None
        sets = self.rows[own.start + first : own.start + last]
        if not np.array_equal(trained_on.numpy(), sets) or not bool(found.isfinite().all()):
            raise _other(path)
        return torch.as_tensor(found)


def _other(path: Path) -> FlSimError:
    return FlSimError(
        f"The kept shadow heads {printable(str(path))} are not those that are asked for; remove "
        f"the file, and they are trained again."
    )


def heads_made(
    made: Made,
    shapes: Mapping[str, tuple[int, ...]],
    rows: NDArray[np.int32],
    size: int,
    progress: Progress,
    kept: tuple[Path, str] | None = None,
) -> dict[str, "torch.Tensor | Blocks"]:
    """Make what is kept of many heads, in memory or, block by block, on disk.

    Args:
        made: makes some heads.
        shapes: of what is kept of one head, by name.
        rows: which images each head is trained on, ``[heads, N]``.
        size: heads that are made at once.
        progress: where to report.
        kept: a folder, and :func:`identity_of` the heads; ``None`` for memory.

    Returns:
        Tensors ``[heads, ...]`` by name, or what reads them.
    """
    heads = len(rows)
    with piece(progress, "shadow heads", heads):
        if kept is None:
            return dict(_in_memory(made, shapes, range(heads), size, progress))
        folder, identity = kept
        block = max(1, _BLOCK // (sum(map(int, map(np.prod, shapes.values()))) + rows.shape[1]))
        blocks: dict[str, torch.Tensor | Blocks] = {}
        for name, shape in shapes.items():
            blocks[name] = Blocks(folder, identity, name, (heads, *shape), rows, block)
        any_of_them = next(iter(blocks.values()))
        assert isinstance(any_of_them, Blocks)
        for number in range(len(any_of_them)):
            own = any_of_them.heads(number)
            if any_of_them.whole(number):
                progress.step(advance=len(own))
                continue
            tensors = _in_memory(made, shapes, own, size, progress)
            tensors[ROWS] = torch.from_numpy(rows[own.start : own.stop].copy())
            content = save(tensors, {_HEADER: identity})
            write_atomically(any_of_them.path(number), content)
        return blocks


def _in_memory(
    made: Made, shapes: Mapping[str, tuple[int, ...]], heads: range, size: int, progress: Progress
) -> dict[str, torch.Tensor]:
    found = {name: torch.empty(len(heads), *shape) for name, shape in shapes.items()}
    for start in range(heads.start, heads.stop, size):
        some = range(start, min(start + size, heads.stop))
        for name, part in made(some).items():
            place = slice(some.start - heads.start, some.stop - heads.start)
            if found[name].dtype != part.dtype:
                found[name] = found[name].to(part.dtype)
            found[name][place] = part
        progress.step(advance=len(some))
    return found
