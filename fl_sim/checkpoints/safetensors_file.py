"""safetensors files, read strictly: every byte of the header and of the data is accounted for.

The format: eight bytes with the header's length, the header (JSON: type, shape and place of every
tensor), the tensors. Source: github.com/huggingface/safetensors, "Format".
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import torch

from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.finding import Finding, Level
from fl_sim.checkpoints.source import Damaged, Source
from fl_sim.checkpoints.stated_model import stated_model
from fl_sim.checkpoints.storage import MOST_DIMENSIONS
from fl_sim.checkpoints.wrappers import compared, legible_names, split_copies, unwrapped
from fl_sim.errors import legible
from fl_sim.models.base import ModelSpec

_LONGEST_HEADER = 1 << 24
_LONG_TEXT = 4096
_MODEL = "fl_sim.model"
_ORDINARY = {"format": frozenset({"pt", "tf", "flax", "np", "mlx", "torch"})}
_TYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "U16": (16, torch.uint16),
    "I16": (16, torch.int16),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "U32": (32, torch.uint32),
    "I32": (32, torch.int32),
    "F32": (32, torch.float32),
    "U64": (64, torch.uint64),
    "I64": (64, torch.int64),
    "F64": (64, torch.float64),
    "C64": (64, torch.complex64),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E8M0": (8, getattr(torch, "float8_e8m0fnu", None)),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}
"""Bits of an element, and torch's type; ``None``: kept as bytes."""


def is_safetensors(head: bytes) -> bool:
    """Return whether a file's first nine bytes are a length and the beginning of a header."""
    return len(head) >= 9 and head[8:9] == b"{"


def read_safetensors(source: Source) -> Checkpoint:
    """Read a safetensors file.

    Raises:
        Damaged: if its header is broken or claims what the file has not.
    """
    header, text, begin = _header(source)
    metadata = header.pop("__metadata__", {})
    findings = _spelling(text, begin)
    spec, about = _metadata(metadata)
    places = _places(header, source.size - begin)
    findings += [*about, *_unclaimed(places, source.size - begin, begin)]
    read: dict[str, torch.Tensor] = {}
    layouts: dict[str, str] = {}
    for name, (begun, end, kind, shape) in places.items():
        read[name], words = _tensor(source, begin + begun, end - begun, kind, shape)
        if words:
            layouts[name] = words
    if not read:
        raise Damaged("it has no tensors")
    shapes = {name: tensor.shape for name, tensor in read.items()}
    copies = {} if spec else split_copies(read, shapes)
    inner = {id(tensor) for copy in copies.values() for tensor in copy.values()}
    state = {name: tensor for name, tensor in read.items() if id(tensor) not in inner}
    kept = {id(state[name]): words for name, words in layouts.items() if name in state}
    if spec is None:  # who states the network means the names as they are
        state, outside = unwrapped(state)
        findings += outside
    names, changed = legible_names(state)
    state = dict(zip(names, state.values(), strict=True))
    findings += [*changed, *(_bools(state))]
    findings += [compared(copy, state, name) for name, copy in copies.items()]
    words_by_name = {name: kept[id(tensor)] for name, tensor in state.items() if id(tensor) in kept}
    return Checkpoint(state, spec, tuple(findings), words_by_name, copies, "safetensors")


def _header(source: Source) -> tuple[dict[str, Any], bytes, int]:
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > source.size - 8:
        raise Damaged(f"its header states {length} bytes, and the file has {source.size}")
    if length > _LONGEST_HEADER:
        raise Damaged(f"its header has {length} bytes, more than the names of any network")
    text = source.read(8, length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise Damaged("its header is nested too deeply") from None
    except Damaged:
        raise
    except ValueError:  # also bad UTF-8, and integers of thousands of digits
        raise Damaged("its header is no JSON") from None
    if not isinstance(header, dict):
        raise Damaged("its header is no table of tensors")
    return header, text, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 2000 else ""
        raise Damaged(f"its header names '{legible(twice, 80)}' twice")
    return made


def _spelling(text: bytes, begin: int) -> list[Finding]:
    """Compare the header with how a library writes the same: no spaces, no odd escapes."""
    tight = text.rstrip(b" ")
    header = json.loads(tight)
    forms: tuple[tuple[str, str], ...] = ((",", ":"), (", ", ": "))
    written = [
        json.dumps(header, separators=f, ensure_ascii=a) for f in forms for a in (False, True)
    ]
    spare = len(text) - len(tight)
    findings = []
    if spare >= 64:
        what = f"{spare} spaces stand at the end of its header."
        findings.append(Finding("file", "suspicious", what, None, {"bytes": spare}))
    if tight not in [w.encode("utf-8", "surrogatepass") for w in written]:
        longer = max(1, len(tight) - len(written[0].encode("utf-8", "surrogatepass")))
        what = f"Its header is written otherwise than any library does, {longer} bytes longer."
        findings.append(Finding("file", "suspicious", what, None, {"bytes": longer}))
    return findings


def _metadata(metadata: Any) -> tuple[ModelSpec | None, list[Finding]]:
    """Return the model that the header states, and what else it says."""
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Damaged("its header's metadata are no texts by name")
    spec: ModelSpec | None = None
    findings: list[Finding] = []
    if _MODEL in metadata:
        spec, findings = stated_model(metadata[_MODEL])
    rest = {k: v for k, v in metadata.items() if k != _MODEL and v not in _ORDINARY.get(k, ())}
    total = sum(len((k + v).encode("utf-8", "surrogatepass")) for k, v in rest.items())
    if total:
        names = ", ".join(f"'{legible(k, 60)}'" for k in list(rest)[:6])
        what = (
            f"Its header has {total} bytes of text beside the tensors' names and shapes: {names}."
        )
        level: Level = "suspicious" if total > _LONG_TEXT else "note"
        findings.append(Finding("file", level, what, None, {"bytes": total}))
    return spec, findings


Places = Mapping[str, tuple[int, int, str, tuple[int, ...]]]


def _places(header: dict[str, Any], size: int) -> Places:
    """Return begin, end, type and shape of every tensor, checked against the file's size."""
    places: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}
    for name, said in header.items():
        quoted = f"its tensor '{legible(name, 80)}'"
        if not isinstance(said, dict) or set(said) != {"dtype", "shape", "data_offsets"}:
            raise Damaged(f"{quoted} is not described by type, shape and place")
        kind, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
        if not isinstance(kind, str) or kind not in _TYPES:
            raise Damaged(f"{quoted} is of the unknown type '{legible(str(kind)[:60], 40)}'")
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            raise Damaged(f"{quoted} has a shape or a place that is none")
        if len(shape) > MOST_DIMENSIONS or math.prod(n for n in shape if n) >= 1 << 62:
            raise Damaged(f"{quoted} has a shape that no tensor has")
        begin, end = offsets
        if not begin <= end <= size:
            raise Damaged(f"{quoted} lies outside the file")
        bits = math.prod(shape) * _TYPES[kind][0]
        if (end - begin) * 8 != bits:
            raise Damaged(f"{quoted} has {end - begin} bytes, and its shape needs {bits / 8:g}")
        places[name] = (begin, end, kind, tuple(shape))
    return places


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in values
    )


def _unclaimed(places: Places, size: int, begin: int) -> list[Finding]:
    """Report bytes of the data that no tensor claims; two tensors may not share any."""
    findings: list[Finding] = []
    cursor = 0
    for first, end, *_ in sorted(place[:2] for place in places.values()):
        if first < cursor and end > first:
            raise Damaged("its tensors overlap")
        findings += _gap(cursor, first, begin)
        cursor = max(cursor, end)
    return findings + _gap(cursor, size, begin)


def _gap(first: int, end: int, begin: int) -> list[Finding]:
    if end <= first:
        return []
    what = f"{end - first} bytes belong to no tensor, at byte {begin + first}."
    evidence: dict[str, float] = {"bytes": end - first, "place": begin + first}
    return [Finding("file", "carries", what, None, evidence)]


def _tensor(
    source: Source, place: int, size: int, kind: str, shape: tuple[int, ...]
) -> tuple[torch.Tensor, str]:
    dtype = _TYPES[kind][1]
    words = "" if dtype is not None else f"{kind} elements of shape {shape}, packed in bytes"
    dtype, shape = (torch.uint8, (size,)) if dtype is None else (dtype, shape)
    if not size:
        return torch.empty(shape, dtype=dtype), words
    flat = torch.frombuffer(source.fill(place, size), dtype=torch.uint8)
    return flat.view(dtype).view(shape), words


def _bools(state: Mapping[str, torch.Tensor]) -> list[Finding]:
    findings = []
    for name, tensor in state.items():
        odd = int((tensor.view(torch.uint8) > 1).sum()) if tensor.dtype == torch.bool else 0
        if odd:
            what = f"{odd} of its truth values are bytes other than 0 and 1."
            findings.append(Finding("file", "carries", what, name, {"bytes": odd}))
    return findings
