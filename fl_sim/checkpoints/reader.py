"""Reading checkpoints that nobody here made, without running anything that is in them."""

import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fl_sim.checkpoints.finding import Finding
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse

State = dict[str, torch.Tensor]
INSIDE = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Keys under which a checkpoint's state dictionary may lie, the likeliest first."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before every name: DataParallel, torch.compile, Lightning."""

_MODEL = "fl_sim.model"
_LONG_HEADER = 4096
_RUNS_CODE = ("GLOBAL", "unrecognized function", "allowlisted")  # in torch's messages


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        state: the state dictionary, strided tensors on the CPU, without wrappers' prefixes.
        spec: the architecture, where the file states it (fl-sim's own files do).
        findings: what is odd about the file itself.
        layouts: how entries are stored that are not plain tensors (sparse, quantised), in words, by
            name.
        copies: further copies of the weights in the file, such as an average, by what they are.
        format: what the file is, in words.
    """

    state: State
    spec: ModelSpec | None = None
    findings: tuple[Finding, ...] = field(default=())
    layouts: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, State] = field(default_factory=dict)
    format: str = "state dictionary"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: safetensors, or torch's .pt and .pth; nothing in it is run.

    Raises:
        FlSimError: if it is missing or damaged, would run code, or has no state dictionary.
    """
    if not path.is_file():
        raise FlSimError(f"The checkpoint {path} does not exist.")
    with open(path, "rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FlSimError(f"The checkpoint {path} cannot be read: {error}.") from None
    spec, text = None, header.pop(_MODEL, None)
    if text is not None:
        try:
            spec = parse(ModelSpec, json.loads(text), f"The checkpoint {path}")
        except json.JSONDecodeError:
            raise FlSimError(f"The checkpoint {path} states no legible architecture.") from None
    findings = []
    size = sum(len(key) + len(value) for key, value in header.items())
    if size > _LONG_HEADER:
        what = f"Its header has {size} bytes of text beside the tensors' names and shapes."
        findings.append(Finding("file", "suspicious", what, None, {"bytes": size}))
    return Checkpoint(_stripped(_required(state, path)), spec, tuple(findings))


def _read_torch(path: Path) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(words in str(error) for words in _RUNS_CODE):
            raise FlSimError(
                f"The checkpoint {path} would run code when it is loaded, so it was not: ask its "
                f"makers for the state dictionary alone, as safetensors."
            ) from None
        raise FlSimError(f"The checkpoint {path} is damaged or no checkpoint.") from None
    except Exception as error:  # whatever torch meets in a broken file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlSimError(f"The checkpoint {path} cannot be read: {first}") from None
    state, rest = _state_inside(content)
    state = _required(state, path)
    findings = [*_container(path), *_hidden_storage(state), *_further(rest)]
    tidy = {name: tensor.detach().contiguous() for name, tensor in _stripped(state).items()}
    return Checkpoint(tidy, None, tuple(findings))


def _required(state: State, path: Path) -> State:
    if not state:
        raise FlSimError(
            f"The checkpoint {path} has no state dictionary: no tensors by name, at its top or "
            f"under {', '.join(INSIDE)}."
        )
    return state


def _state_inside(content: Any) -> tuple[State, dict[str, Any]]:
    """Return the state dictionary and everything beside it."""
    if not isinstance(content, Mapping):
        return {}, {}
    for key in INSIDE:
        inner = content.get(key)
        deeper, beside = _state_inside(inner)
        if deeper:
            outside = {str(k): v for k, v in content.items() if k != key}
            return deeper, outside | beside
    tensors = _tensors(content)
    return tensors, {str(k): v for k, v in content.items() if str(k) not in tensors}


def _tensors(content: Mapping[Any, Any]) -> State:
    return {str(k): v.detach() for k, v in content.items() if isinstance(v, torch.Tensor)}


def _stripped(state: State) -> State:
    """Take off what a wrapper put before every name."""
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _stripped({name[len(prefix) :]: tensor for name, tensor in state.items()})
    return state


def _hidden_storage(state: State) -> list[Finding]:
    """Find memory that is saved with a tensor and that the tensor does not show."""
    shown: dict[int, int] = {}
    held: dict[int, tuple[int, str]] = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        shown[place] = shown.get(place, 0) + tensor.numel() * tensor.element_size()
        held[place] = (storage.nbytes(), name)
    return [
        Finding(
            "file", "carries",
            f"{size - shown[place]} bytes are saved with it that the tensor does not show.",
            name, {"bytes": size - shown[place]},
        )
        for place, (size, name) in held.items()
        if size > shown[place]
    ]  # fmt: skip


def _container(path: Path) -> list[Finding]:
    """Find records of the archive that hold no tensor, and bytes around it."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        infos, comment = archive.infolist(), archive.comment
    usual = ("data.pkl", "version", "byteorder", ".format_version", ".storage_alignment")
    odd = [
        info
        for info in infos
        if not info.filename.endswith(usual)
        and "/data/" not in info.filename
        and "/.data/" not in info.filename
    ]
    findings = [
        Finding("file", "carries", f"The archive has a file '{info.filename[:80]}' that no tensor "
                f"uses.", None, {"bytes": info.file_size})
        for info in odd
    ]  # fmt: skip
    before = min((info.header_offset for info in infos), default=0)
    if before or comment:
        what = f"{before + len(comment)} bytes stand before or after the archive's files."
        findings.append(Finding("file", "carries", what, None, {"bytes": before + len(comment)}))
    return findings


def _further(rest: dict[str, Any]) -> list[Finding]:
    """Report what lies beside the state dictionary: the optimizer's state and the like."""
    findings = []
    for key, value in rest.items():
        size = _size(value)
        if size > _LONG_HEADER:
            what = f"'{key[:80]}' beside the weights holds {size} bytes; a model does not need it."
            findings.append(Finding("file", "suspicious", what, None, {"bytes": size}))
    return findings


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_size(item) for item in value)
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return math.ceil(value.bit_length() / 8)
    return 8
