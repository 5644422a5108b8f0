"""The files of a sealed model: what leaves, and what stays with its owner.

What leaves is a folder:

- ``manifest.json``: the network, the base, the head's shape, parameters with their security by the
  standard's table, versions, and the SHA-256 of the other files;
- ``clear.safetensors``: every entry but the head's;
- ``head.safetensors``: the head's ciphertexts, ``[n, bytes]`` by level;
- ``context.safetensors``: public keys for rotations and products, where the form needs them.

The owner keeps a folder of mode 0700: ``secret.safetensors`` (mode 0600) with the secret key, and
``answered.json``, how many questions he has answered. Reading takes no more memory than the files
are long.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save

from fl_sim import __version__
from fl_sim.artifact import read_safetensors
from fl_sim.data.base import Task
from fl_sim.errors import FlSimError, printable
from fl_sim.files import checksum, write_atomically, writing
from fl_sim.models.base import ModelSpec
from fl_sim.plain import parse_json
from fl_sim.sealing.bases import Base
from fl_sim.sealing.ckks import Scheme, SecretScheme
from fl_sim.sealing.forms import Form, SealedHead, Shape, encrypted_head
from fl_sim.sealing.heads import Linear
from fl_sim.sealing.parameters import CkksParameters, security_bits
from fl_sim.sealing.view import ReceiversView, Sealing
from fl_sim.settings import Settings, parse

MANIFEST, CLEAR, HEAD, CONTEXT = (
    "manifest.json",
    "clear.safetensors",
    "head.safetensors",
    "context.safetensors",
)
SECRET, ANSWERED = "secret.safetensors", "answered.json"
STANDARD = "Homomorphic Encryption Security Standard, 2018, table 1 (ternary secret, classical)"
_LONGEST_MANIFEST = 1 << 20
_MOST = 1 << 20
_FORMAT = 1
_BYTE = torch.uint8

State = dict[str, torch.Tensor]


class _Base(Settings):
    name: str
    sha256: str | None


class _Ckks(Settings):
    degree: int
    moduli: tuple[int, ...] = Field(max_length=16)
    scale_bits: int


class ShapeRecord(Settings):
    """A head's shape as files state it; see :class:`fl_sim.sealing.forms.Shape`."""

    features: int = Field(ge=1, le=_MOST)
    outputs: int = Field(ge=1, le=_MOST)
    hidden: int = Field(ge=0, le=_MOST)
    form: Form
    parameters: _Ckks

    def shape(self, ciphertexts: int) -> Shape:
        """Return the shape, if so many ciphertexts can hold it.

        Raises:
            FlSimError: if they cannot, or the parameters are weak.
        """
        own = self.parameters
        parameters = CkksParameters(own.degree, own.moduli, own.scale_bits)
        weights = (self.hidden or self.outputs) * self.features
        if max(weights, self.outputs) > ciphertexts * own.degree // 2:
            raise FlSimError(
                f"The manifest states a head of {weights} weights, and {ciphertexts} ciphertexts "
                f"cannot hold them."
            )
        return Shape(self.features, self.outputs, self.hidden, self.form, parameters)


class Manifest(Settings):
    """What an artifact says of itself."""

    format: Literal[1]
    fl_sim: str
    versions: dict[str, str]
    model: ModelSpec
    task: str
    labels: tuple[str, ...]
    base: _Base
    head: tuple[str, ...] = Field(min_length=1, max_length=2)
    sealed: dict[str, tuple[int, ...]]
    shape: ShapeRecord
    security_bits: int
    standard: str
    files: dict[str, str]


@dataclass(frozen=True)
class SealedFiles:
    """Where a sealed model and its owner's key were written.

    Args:
        artifact: folder that leaves.
        key: file that must not.
        bytes: of the files that leave, by name.
    """

    artifact: Path
    key: Path
    bytes: dict[str, int]


@dataclass(frozen=True)
class Received:
    """A sealed model as its receiver has it.

    Args:
        manifest: what it says of itself.
        identity: SHA-256 of the manifest, by which answers name it.
        view: everything that can be read.
        head: what cannot, ready to answer.
        scheme: public parameters.
    """

    manifest: Manifest
    identity: str
    view: ReceiversView
    head: SealedHead
    scheme: Scheme


@dataclass(frozen=True)
class OwnersKey:
    """What the owner keeps.

    Args:
        identity: of the artifact that it belongs to.
        shape: of the head.
        task: kind of task, which says what a decision is.
        limit: questions that he answers at most, in all.
        sealed: fingerprints of the sealed weights at the level of answers.
        scheme: with the secret key.
    """

    identity: str
    shape: Shape
    task: str
    limit: int
    sealed: frozenset[str]
    scheme: SecretScheme


def write_sealed(
    artifact: Path,
    owner: Path,
    spec: ModelSpec,
    state: Mapping[str, torch.Tensor],
    sealing: Sealing,
    task: Task,
) -> SealedFiles:
    """Encrypt a model's head under a new key, and write what leaves and what stays.

    Args:
        artifact: folder that leaves; made, and must not be there.
        owner: folder that stays with the owner, neither in the other nor around it; likewise.
        spec: how the network is built.
        state: the owner's model, with its head in clear.
        sealing: what is sealed of it, and how.
        task: of the network.

    Raises:
        FlSimError: if a folder is there already or in the other, or TenSEAL is not installed.
    """
    _require_apart(artifact, owner)
    scheme, shape = SecretScheme(sealing.shape.parameters), sealing.shape
    layers = [layer.matrix() for layer in _layers(state, sealing)]
    weights, keys = encrypted_head(shape, layers, scheme)
    clear = {n: v.detach().cpu().contiguous() for n, v in state.items() if n not in sealing.entries}
    contents = {
        CLEAR: save(clear, {"fl_sim.clear": spec.model_dump_json()}),
        HEAD: save(_by_level(weights, shape)),
        CONTEXT: save({name: _bytes(content) for name, content in keys.items()}),
    }
    manifest = _manifest(spec, state, sealing, task, contents)
    identity = hashlib.sha256(manifest).hexdigest()
    with writing(owner):
        owner.mkdir(mode=0o700, parents=True)
    key = write_atomically(
        owner / SECRET, _key_file(scheme, sealing, weights, identity, task), private=True
    )
    write_atomically(owner / ANSWERED, json.dumps({"answered": 0}).encode(), private=True)
    for name, content in {**contents, MANIFEST: manifest}.items():
        write_atomically(artifact / name, content)
    return SealedFiles(
        artifact, key, {n: len(c) for n, c in {**contents, MANIFEST: manifest}.items()}
    )


def remove_sealed(artifact: Path, owner: Path) -> None:
    """Remove what an interrupted run has written, so that it can be written again."""
    for folder in (artifact, owner):
        if folder.is_dir():
            shutil.rmtree(folder)


def _require_apart(artifact: Path, owner: Path) -> None:
    ends = [Path(os.path.abspath(folder)) for folder in (artifact, owner)]
    if ends[0] == ends[1] or ends[0] in ends[1].parents or ends[1] in ends[0].parents:
        raise FlSimError(
            f"The owner's folder {printable(str(owner))} and the artifact "
            f"{printable(str(artifact))} must lie apart, or the key leaves with the model."
        )
    for folder in (artifact, owner):
        if folder.exists():
            raise FlSimError(
                f"The folder {printable(str(folder))} is there already; give another one, since a "
                f"key that is overwritten is lost."
            )


def _layers(state: Mapping[str, torch.Tensor], sealing: Sealing) -> list[Linear]:
    return [
        Linear(state[f"{name}.weight"].detach(), state.get(f"{name}.bias")) for name in sealing.head
    ]


def _bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _by_level(weights: list[bytes], shape: Shape) -> State:
    """Return ciphertexts stacked by level, whose lengths are equal."""
    rows: dict[int, list[torch.Tensor]] = {}
    for content, level in zip(weights, shape.weight_levels, strict=True):
        rows.setdefault(level, []).append(_bytes(content))
    return {f"level {level}": torch.stack(own) for level, own in rows.items()}


def _manifest(
    spec: ModelSpec,
    state: Mapping[str, torch.Tensor],
    sealing: Sealing,
    task: Task,
    contents: Mapping[str, bytes],
) -> bytes:
    packages = ("tenseal", "torch", "safetensors")
    values = {
        "format": _FORMAT,
        "fl_sim": __version__,
        "versions": {name: version(name) for name in packages},
        "model": spec.model_dump(mode="json"),
        "task": task.kind,
        "labels": list(task.label_names),
        "base": asdict(sealing.base),
        "head": list(sealing.head),
        "sealed": {name: list(state[name].shape) for name in sealing.entries},
        "shape": asdict(sealing.shape),
        "security_bits": security_bits(sealing.shape.parameters),
        "standard": STANDARD,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def _key_file(
    scheme: SecretScheme,
    sealing: Sealing,
    weights: list[bytes],
    identity: str,
    task: Task,
) -> bytes:
    shape = sealing.shape
    fingerprints = [
        scheme.fingerprint(
            scheme.ciphertext(content, level, scheme.scale, "A weight", computed=False),
            shape.answer_level,
        )
        for content, level in zip(weights, shape.weight_levels, strict=True)
    ]
    header = {
        "artifact": identity,
        "shape": asdict(shape),
        "ciphertexts": len(weights),
        "task": task.kind,
        "limit": sealing.limit,
        "sealed": fingerprints,
    }
    return save({"secret": _bytes(scheme.secret_bytes())}, {"fl_sim.owner": json.dumps(header)})


class _KeyHeader(Settings):
    artifact: str
    shape: ShapeRecord
    ciphertexts: int = Field(ge=1, le=_MOST)
    task: str
    limit: int
    sealed: tuple[str, ...]


def read_owners_key(path: Path) -> OwnersKey:
    """Read the owner's key.

    Raises:
        FlSimError: if it is missing, damaged, no such key, or others may read it.
    """
    tensors, metadata = read_safetensors(path, "owner's key")
    name = printable(str(path))
    if os.stat(path).st_mode & 0o077:
        raise FlSimError(
            f"The owner's key {name} can be read by others; give the command chmod 600 on it, and "
            f"think of who has read it."
        )
    if "fl_sim.owner" not in metadata or "secret" not in tensors:
        raise FlSimError(f"The file {name} is not an owner's key of fl-sim rhe seal.")
    header = parse_json(metadata["fl_sim.owner"], f"The header of the owner's key {name}")
    known = parse(_KeyHeader, header, f"The owner's key {name}")
    shape = known.shape.shape(known.ciphertexts)
    secret = tensors["secret"].numpy().tobytes()
    scheme = SecretScheme(shape.parameters, secret)
    return OwnersKey(
        known.artifact, shape, known.task, known.limit, frozenset(known.sealed), scheme
    )


def read_manifest(artifact: Path) -> tuple[Manifest, str]:
    """Read what an artifact says of itself, and its identity.

    Raises:
        FlSimError: if there is none, or it is damaged.
    """
    path, name = artifact / MANIFEST, printable(str(artifact))
    if not path.is_file():
        raise FlSimError(
            f"{name} is no sealed model: it has no {MANIFEST}; give the folder that fl-sim rhe "
            f"seal wrote."
        )
    if path.stat().st_size > _LONGEST_MANIFEST:
        raise FlSimError(f"The manifest of {name} is longer than a manifest can be.")
    content = path.read_bytes()
    values = parse_json(content, f"The manifest of {name}")
    if not isinstance(values, dict):
        raise FlSimError(f"The manifest of {name} is no table.")
    return parse(Manifest, values, f"The manifest of {name}"), hashlib.sha256(content).hexdigest()


def read_sealed(artifact: Path) -> Received:
    """Read a sealed model as its receiver does, ready to answer.

    Raises:
        FlSimError: if a file is missing, damaged, another than the manifest says, or its head is
            not like the manifest's; or TenSEAL is not installed.
    """
    manifest, identity = read_manifest(artifact)
    weights = _ciphertexts(_read(artifact, HEAD, manifest))
    view = _view(artifact, manifest, len(weights))
    scheme = Scheme(view.shape.parameters)
    context = _read(artifact, CONTEXT, manifest)
    keys = {name: tensor.numpy().tobytes() for name, tensor in context.items()}
    return Received(manifest, identity, view, SealedHead(view.shape, scheme, weights, keys), scheme)


def read_view(artifact: Path) -> ReceiversView:
    """Read what anybody can of a sealed model: all but its head. It takes no TenSEAL.

    Raises:
        FlSimError: as :func:`read_sealed`.
    """
    manifest, _ = read_manifest(artifact)
    return _view(artifact, manifest, len(_ciphertexts(_read(artifact, HEAD, manifest))))


def _view(artifact: Path, manifest: Manifest, ciphertexts: int) -> ReceiversView:
    shape = manifest.shape.shape(ciphertexts)
    clear = _read(artifact, CLEAR, manifest)
    _require_of_head(manifest, clear)
    base = Base(manifest.base.name, manifest.base.sha256)
    return ReceiversView(manifest.model, base, clear, manifest.sealed, manifest.head, shape)


def _read(artifact: Path, name: str, manifest: Manifest) -> State:
    tensors, _ = read_safetensors(artifact / name, f"file {name} of the sealed model")
    if checksum(artifact / name) != manifest.files.get(name):
        raise FlSimError(
            f"The file {printable(str(artifact / name))} is not the one of its manifest: it was "
            f"changed, or belongs to another sealed model."
        )
    return tensors


def _ciphertexts(tensors: State) -> list[bytes]:
    found = []
    for name in sorted(tensors):
        rows = tensors[name]
        if rows.dtype != _BYTE or rows.ndim != 2:
            raise FlSimError(f"The sealed head's '{printable(name)}' holds no ciphertexts.")
        found += [row.numpy().tobytes() for row in rows]
    return found


def _require_of_head(manifest: Manifest, clear: State) -> None:
    """Refuse sealed entries that are not the weights and biases of a head of the stated shape."""
    shape = manifest.shape
    sizes = [shape.features, *([shape.hidden] if shape.hidden else []), shape.outputs]
    allowed: dict[str, tuple[int, ...]] = {}
    for name, inputs, outputs in zip(manifest.head, sizes[:-1], sizes[1:], strict=False):
        allowed |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    named = len(manifest.head) == len(sizes) - 1
    if not named or any(allowed.get(n) != s or n in clear for n, s in manifest.sealed.items()):
        raise FlSimError("The manifest's sealed entries are not of a head of its shape.")


def header_of(metadata: Mapping[str, str], what: str) -> dict[str, Any]:
    """Return the JSON in an answers file's header.

    Raises:
        FlSimError: if there is none.
    """
    if "fl_sim.answers" not in metadata:
        raise FlSimError(f"The {what} are not of fl-sim rhe predict: their header lacks it.")
    found = parse_json(metadata["fl_sim.answers"], f"The header of the {what}")
    if not isinstance(found, dict):
        raise FlSimError(f"The header of the {what} is no table.")
    return found
