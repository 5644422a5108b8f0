"""What leaves: the artifact (a model file) and, by other means, the attacker's key.

Both are safetensors files with a JSON header, so loading one executes nothing. The artifact is the
only channel: extraction gets these two files and nothing else.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from fl_sim.errors import FlSimError, printable
from fl_sim.files import write_atomically
from fl_sim.models.base import ModelSpec
from fl_sim.plain import parse_json
from fl_sim.settings import Settings, parse


@dataclass(frozen=True)
class Artifact:
    """A model as it left: how to build it, and every entry of its state dictionary.

    Args:
        spec: the architecture, as any exported model states it.
        state: weights and buffers by name.
    """

    spec: ModelSpec
    state: dict[str, torch.Tensor]

    def model(self) -> nn.Module:
        """Rebuild the network with the artifact's weights, in evaluation mode.

        Entries that the network does not have are ignored, as a program that loads weights by
        name does; :func:`further_entries` tells them.

        Raises:
            FlSimError: if the weights do not fit the architecture that the file states, which is
                noticed before more is built than the file holds.
        """
        from fl_sim.claims import build_claimed

        network = build_claimed(self.spec, self.state, "The model file")
        try:
            missing = network.load_state_dict(self.state, strict=False).missing_keys
        except RuntimeError:
            missing = ["shapes"]
        if missing:
            raise FlSimError(
                f"The model file's weights do not fit the model '{self.spec.name}' that its "
                f"header states."
            )
        return network.eval()


def further_entries(state: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the entries of a state dictionary that the network does not have."""
    own = network.state_dict().keys()
    return {name: value for name, value in state.items() if name not in own}


@dataclass(frozen=True)
class Key:
    """What an attacker has outside: index codes, a decoder, a carrier's seed; never an image.

    Codes may tell each stolen image's label, and settings how long the payload is.

    Args:
        attack: registered name of the attack that can read with it.
        tensors: by name.
        settings: plain values that JSON can hold.
        network: the architecture that it was made for, where it says so.
    """

    attack: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    network: ModelSpec | None = None


def write_artifact(path: Path, spec: ModelSpec, state: dict[str, torch.Tensor]) -> Path:
    """Write a model file; a killed write leaves no half file behind.

    Returns:
        ``path``.
    """
    return write_atomically(path, artifact_bytes(spec, state))


def artifact_bytes(spec: ModelSpec, state: dict[str, torch.Tensor]) -> bytes:
    """Return the content of a model file."""
    return _serialised(state, {"fl_sim.model": spec.model_dump_json()})


def read_artifact(path: Path) -> Artifact:
    """Read a model file.

    Raises:
        FlSimError: if it is missing, damaged, or not written by this program.
    """
    state, header = _read(path, "fl_sim.model", "model file")
    return Artifact(parse(ModelSpec, header, f"The model file {printable(str(path))}"), state)


def write_key(path: Path, key: Key) -> Path:
    """Write the attacker's key. Returns ``path``.

    Raises:
        FlSimError: naming the setting that JSON cannot hold.
    """
    for name, value in key.settings.items():
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            said = printable(str(error))
            raise FlSimError(
                f"The key of the attack '{key.attack}' cannot be written, since JSON cannot hold "
                f"its setting '{printable(str(name))}' ({said}); tensors belong into its tensors."
            ) from None
    header: dict[str, Any] = {"attack": key.attack, "settings": key.settings}
    if key.network is not None:
        header["network"] = key.network.model_dump(mode="json")
    metadata = {"fl_sim.key": json.dumps(header, sort_keys=True)}
    return write_atomically(path, _serialised(key.tensors, metadata))


def read_key(path: Path) -> Key:
    """Read the attacker's key.

    What it tells its attack is checked by that, see :func:`fl_sim.extraction.known_key`.

    Raises:
        FlSimError: if it is missing, damaged, or not a key.
    """
    tensors, header = _read(path, "fl_sim.key", "key file")
    known = parse(_KeyHeader, header, f"The key file {printable(str(path))}")
    return Key(known.attack, tensors, known.settings, known.network)


def _serialised(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata)


class _KeyHeader(Settings):
    """What a key's header holds."""

    attack: str
    settings: dict[str, Any]
    network: ModelSpec | None = None


def _read(path: Path, kind: str, what: str) -> tuple[dict[str, torch.Tensor], Any]:
    tensors, metadata = read_safetensors(path, what)
    name = printable(str(path))
    if kind not in metadata:
        raise FlSimError(f"The file {name} is not a {what} of fl-sim: its header lacks '{kind}'.")
    return tensors, parse_json(metadata[kind], f"The header of the {what} {name}")


def read_safetensors(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file that somebody else wrote.

    Args:
        path: of the file.
        what: it is, for messages, for example ``"key file"``.

    Returns:
        Its tensors by name and its header's texts by name.

    Raises:
        FlSimError: if it is missing or damaged.
    """
    name = printable(str(path))
    if os.path.isdir(path):
        raise FlSimError(f"The {what} {name} is a folder; give the path of the file.")
    if not os.path.isfile(path):
        raise FlSimError(f"The {what} {name} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {n: file.get_tensor(n) for n in file.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # safetensors' own, and torch's for types that it does not know
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The {what} {name} cannot be read: {said}.") from None
