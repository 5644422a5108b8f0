"""Models in several files: a folder, or the index that says which tensor lies in which file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from fl_sim.checkpoints.checkpoint import Checkpoint, State
from fl_sim.checkpoints.finding import Finding
from fl_sim.errors import FlSimError, legible

INDEX = ".index.json"
_LONGEST_INDEX = 1 << 24
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_MODELS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".pkl")
_PLAIN = re.compile(r"[^/\\\0]{1,255}")
Read = Callable[[Path], Checkpoint]


def read_folder(path: Path, read: Read) -> Checkpoint:
    """Read the model that a folder holds: by its index, by numbered shards, or its only file.

    Raises:
        FlSimError: if it holds none, several, or shards are missing.
    """
    files = sorted(item for item in path.iterdir() if item.is_file())
    indices = [item for item in files if item.name.endswith(INDEX)]
    if indices:
        # The same model is often there in two formats.
        safe = [item for item in indices if "safetensors" in item.name]
        return read_index((safe or indices)[0], read)
    models = [item for item in files if item.suffix in _MODELS]
    numbered = {item.name: found for item in models if (found := _SHARD.fullmatch(item.name))}
    if numbered:
        first = next(iter(numbered.values()))
        count = int(first[3])
        numbers = range(1, count + 1 if count <= 10_000 else 1)
        names = [f"{first[1]}-{n:05d}-of-{first[3]}{first[4]}" for n in numbers]
        return _joined(path, names, read, None)
    if len(models) == 1:
        return read(models[0])
    if not models:
        raise FlSimError(f"The folder {path} holds no model file: name the file itself.")
    listed = ", ".join(legible(item.name, 60) for item in models[:6])
    raise FlSimError(f"The folder {path} holds several model files ({listed}): name one of them.")


def read_index(path: Path, read: Read) -> Checkpoint:
    """Read the shards that an index names, from the index's own folder.

    Raises:
        FlSimError: if it is broken, or shards are missing.
    """
    placed = _weight_map(path)
    return _joined(path.parent, sorted(set(placed.values())), read, placed)


def _weight_map(path: Path) -> dict[str, str]:
    wrong = f"The index {path} is broken: it does not say which tensor lies in which file."
    if path.stat().st_size > _LONGEST_INDEX:
        raise FlSimError(wrong)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise FlSimError(wrong) from None
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise FlSimError(wrong)
    for name in placed.values():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name) or name in (".", ".."):
            raise FlSimError(f"The index {path} names a file that does not lie beside it.")
    return placed


def _joined(
    folder: Path, names: list[str], read: Read, placed: dict[str, str] | None
) -> Checkpoint:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        listed = ", ".join(legible(name, 80) for name in missing[:6])
        raise FlSimError(
            f"{len(missing)} of {len(names)} files of the model in {folder} are missing: {listed}."
        )
    state: State = {}
    layouts: dict[str, str] = {}
    parts: State = {}
    copies: dict[str, State] = {}
    findings: list[Finding] = []
    kinds = []
    for name in names:
        shard = read(folder / name)
        doubled = next((entry for entry in shard.state if entry in state), None)
        if doubled is not None:
            raise FlSimError(f"Two files of the model in {folder} hold '{legible(doubled, 80)}'.")
        state |= shard.state
        layouts |= shard.layouts
        parts |= shard.parts
        copies |= {f"{legible(name, 60)}: {what}": copy for what, copy in shard.copies.items()}
        findings += [_of(name, finding) for finding in shard.findings]
        kinds.append(shard.format)
    findings += _against_index(state, placed)
    findings += _others(folder, names)
    kind = f"{len(names)} files, {kinds[0]}"
    return Checkpoint(state, None, tuple(findings), layouts, copies, kind, parts)


def _of(name: str, finding: Finding) -> Finding:
    words = f"{legible(name, 80)}: {finding.what}"
    return Finding(finding.check, finding.level, words, finding.tensor, finding.evidence)


def _against_index(state: State, placed: dict[str, str] | None) -> list[Finding]:
    """Compare what the files hold with what the index names."""
    if placed is None:
        return []
    further = [name for name in state if not any(_ends(own, name) for own in (placed,))]
    lacking = len(placed) - (len(state) - len(further))
    findings = []
    if further:
        size = sum(state[name].numel() * state[name].element_size() for name in further)
        what = (
            f"The files hold {len(further)} tensors that the index does not name: "
            f"'{legible(further[0], 80)}'."
        )
        findings.append(Finding("file", "suspicious", what, further[0], {"bytes": size}))
    if lacking > 0:
        what = f"The index names {lacking} tensors that its files do not hold."
        findings.append(Finding("file", "suspicious", what, None, {"entries": lacking}))
    return findings


def _ends(placed: dict[str, str], name: str) -> bool:
    """Whether the index has a name, which may have lost a wrapper's prefix when it was read."""
    return name in placed or any(own.endswith("." + name) for own in placed)


def _others(folder: Path, names: list[str]) -> list[Finding]:
    others = [
        item
        for item in sorted(folder.iterdir())
        if item.is_file() and item.name not in names and not item.name.endswith(INDEX)
    ]
    if not others:
        return []
    size = sum(item.stat().st_size for item in others)
    listed = ", ".join(f"'{legible(item.name, 60)}'" for item in others[:6])
    what = (
        f"{len(others)} further files lie in the folder and were not read, {size} bytes: {listed}."
    )
    return [Finding("file", "note", what, None, {"bytes": size})]
