"""Entries made into tensors, within the memory that the file itself justifies."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from fl_sim.checkpoints.arrays import Array, buffer_of, tensor_of_array
from fl_sim.checkpoints.finding import Finding
from fl_sim.checkpoints.source import Damaged
from fl_sim.checkpoints.storage import Memory, Storage, View, shown, tensor_of
from fl_sim.checkpoints.tensors import Entry
from fl_sim.errors import legible

State = dict[str, torch.Tensor]
_PARTS = {
    "quantised": ("scale", "zero_point"),
    "nested": ("sizes", "strides", "offsets"),
    "sparse_coo": ("indices",),
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


@dataclass
class Built:
    """Tensors with what is to be said of them.

    Args:
        state: tensors by name.
        layouts: how those are stored that are not plain.
        parts: what a layout needs beside the values, by ``name.part``.
        findings: what is odd about single tensors.
    """

    state: State = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    parts: State = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def build(entries: Mapping[str, Entry], memory: Memory) -> Built:
    """Make tensors of entries.

    Raises:
        Damaged: if a sparse tensor's indices lie outside it.
    """
    built, absent = Built(), []
    made: dict[int, tuple[torch.Tensor, str]] = {}
    buffers: dict[int, bytearray] = {}
    for name, entry in entries.items():
        if entry.kind == "meta":
            absent.append(name)
            continue
        if id(entry) not in made:
            made[id(entry)] = (
                _tensor(name, entry, memory, built)
                if entry.array is None
                else _from_array(entry.array, memory, buffers)
            )
        tensor, words = made[id(entry)]
        built.state[name] = tensor
        if words:
            built.layouts[name] = words
        if tensor.dtype == torch.bool:
            _check_bools(name, tensor, built)
    if absent:
        listed = ", ".join(f"'{legible(name, 60)}'" for name in absent[:6])
        what = f"{len(absent)} tensors are named without values (on the meta device): {listed}."
        built.findings.append(Finding("file", "note", what, absent[0], {"entries": len(absent)}))
    return built


def _from_array(
    array: Array, memory: Memory, buffers: dict[int, bytearray]
) -> tuple[torch.Tensor, str]:
    """Make an array a tensor; arrays of the same bytes share them."""
    key = id(array.content)
    if key not in buffers:
        buffers[key] = buffer_of(array)
    if array.turned and not memory.take(array.size):
        raise Damaged("it has more views of the same array than it can hold")
    return tensor_of_array(array, buffers[key])


def _tensor(name: str, entry: Entry, memory: Memory, built: Built) -> tuple[torch.Tensor, str]:
    values, whole = tensor_of(entry.views[0], memory)
    parts = [tensor_of(view, memory)[0] for view in entry.views[1:]]
    named = _PARTS.get(entry.kind, ())
    for index, part in enumerate(parts):
        label = named[index] if index < len(named) else f"part {index}"
        built.parts[f"{name}.{label}"] = part
    if not whole:
        size = entry.views[0].size
        what = (
            f"Its shape {_shape(entry)} claims {size} bytes, and the file has {values.numel()} "
            f"elements for it: only these were read."
        )
        built.findings.append(Finding("file", "suspicious", what, name, {"bytes": size}))
        return values, f"expanded to {_shape(entry)}, its own elements in one row"
    if not entry.kind.startswith("sparse"):
        return values, entry.words
    dense = _dense(entry, values, parts, memory)
    _explain_other_half(entry, parts)
    _check_order(name, entry, parts, built)
    if dense is None:
        return values.reshape(-1), f"{entry.words} of shape {_shape(entry)}, the values in one row"
    return dense, f"{entry.words} of {dense.numel()} elements, zeros filled in"


def _shape(entry: Entry) -> str:
    return " x ".join(str(n) for n in entry.shape[:8])


def _dense(
    entry: Entry, values: torch.Tensor, parts: list[torch.Tensor], memory: Memory
) -> torch.Tensor | None:
    """Fill in a sparse tensor's zeros, ``None`` if the file does not justify so much memory."""
    size = values.element_size()
    for n in entry.shape:
        size *= n
    layout = getattr(torch, entry.kind)
    try:
        if entry.kind == "sparse_coo":
            sparse = torch.sparse_coo_tensor(
                parts[0], values, entry.shape, check_invariants=True, is_coalesced=False
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that such layouts are new in torch
                sparse = torch.sparse_compressed_tensor(
                    parts[0], parts[1], values, entry.shape, layout=layout, check_invariants=True
                )
        return sparse.to_dense().contiguous() if memory.take(2 * size) else None
    except (RuntimeError, ValueError, TypeError):
        raise Damaged("a sparse tensor's indices lie outside it, or are no indices") from None


def _explain_other_half(entry: Entry, parts: list[torch.Tensor]) -> None:
    """Account for what torch saves with compressed positions when they were made of plain ones.

    The inner positions are then one row of a table whose other row repeats the outer ones: nothing
    new if it is equal to what the compressed ones say.
    """
    if entry.kind == "sparse_coo" or parts[0].dim() != 1:
        return
    view, count = entry.views[2], parts[1].numel()
    storage, width = view.storage, view.dtype.itemsize
    if storage.size != 2 * count * width or view.offset not in (0, count):
        return
    other = View(storage, view.dtype, count - view.offset, (count,), (1,))
    rows = torch.repeat_interleave(torch.arange(len(parts[0]) - 1), parts[0].diff().long())
    begin = other.offset * width
    said = storage.content()[begin : begin + count * width].view(view.dtype)
    if not torch.equal(said, rows.to(view.dtype)):
        storage.views.remove(other)


def _check_order(name: str, entry: Entry, parts: list[torch.Tensor], built: Built) -> None:
    """Positions say nothing but where values are; their order could, and doubled ones could."""
    if entry.kind == "sparse_coo":
        later = torch.zeros(max(0, parts[0].shape[-1] - 1), dtype=torch.bool)
        for row in parts[0].flip(0):
            step = row.diff()
            later = (step > 0) | ((step == 0) & later)
        sorted_ = bool(later.all())
    else:
        inner, outer = parts[1].reshape(-1), parts[0].reshape(-1)
        falls = (inner[1:] <= inner[:-1]).nonzero().reshape(-1) + 1
        sorted_ = bool(torch.isin(falls, outer).all())
    if not sorted_:
        what = (
            "The positions of its values are doubled or in no order, and an order can tell things."
        )
        built.findings.append(
            Finding("file", "suspicious", what, name, {"values": entry.views[0].elements})
        )


def _check_bools(name: str, tensor: torch.Tensor, built: Built) -> None:
    odd = int((tensor.view(torch.uint8) > 1).sum()) if tensor.numel() else 0
    if odd:
        what = f"{odd} of its truth values are bytes other than 0 and 1."
        built.findings.append(Finding("file", "carries", what, name, {"bytes": odd}))


def hidden(storages: Mapping[str, Storage], names: Mapping[int, str]) -> list[Finding]:
    """Report bytes of storages that no tensor shows.

    Args:
        storages: all of the file's, by key.
        names: a tensor's name by the identity of its storage.
    """
    findings = []
    for key, storage in storages.items():
        mask = shown(storage, storage.views)
        size = 0 if mask is None else storage.size - int(mask.sum())
        if not size:
            continue
        first = 0 if mask is None else int(np.argmin(mask))
        name = names.get(id(storage))
        what = (
            f"{size} bytes are saved with it that the tensor does not show, the first at byte "
            f"{first} of storage {legible(key, 40)}."
        )
        if name is None:
            what = f"Storage {legible(key, 40)} has {size} bytes that no tensor shows."
        findings.append(Finding("file", "carries", what, name, {"bytes": size, "place": first}))
    return findings
