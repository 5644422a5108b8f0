"""Codec files: settings, weights and tables in one safetensors file, or what decoding needs of it.

What is read is what was written, tables included: tables built anew on another machine could differ
in one frequency, and then nothing decodes.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_sim.codecs.base import CODECS, Codec
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.settings import parse

_HEADER = "fl_sim.codec"


def save_codec(path: Path, codec: Codec[Any], decoder_only: bool = False) -> Path:
    """Write a codec file.

    Args:
        path: where; its folder is made.
        codec: trained, or lossless.
        decoder_only: leave out what only encoding needs.

    Returns:
        ``path``.
    """
    header = {
        "name": codec.name,
        "settings": codec.settings.model_dump(mode="json"),
        "decoder_only": decoder_only,
        "versions": {package: version(package) for package in ("torch", "compressai")},
    }
    tensors = {k: t.detach().cpu().contiguous() for k, t in codec.tensors(decoder_only).items()}
    return write_atomically(path, save(tensors, {_HEADER: json.dumps(header, sort_keys=True)}))


def load_codec(path: Path) -> Codec[Any]:
    """Read a codec file.

    Raises:
        FlSimError: if it is missing, damaged, or no codec file.
    """
    header, tensors = _read(path)
    return codec_from(header["name"], header["settings"], tensors)


def codec_from(name: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Codec[Any]:
    """Build a codec from its parts.

    Args:
        name: registered name.
        settings: as plain values.
        tensors: what :meth:`Codec.tensors` returned.

    Raises:
        FlSimError: if there is no such codec, a setting is wrong, or the tensors do not fit.
    """
    kind = CODECS.get(name)
    codec = kind(parse(kind.Settings, settings, f"The codec '{name}'"))
    codec.load_tensors(tensors)
    return codec


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FlSimError(f"The codec file {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FlSimError(f"The codec file {path} cannot be read: {error}.") from None
    if text is None:
        raise FlSimError(f"The file {path} is not a codec file: its header lacks '{_HEADER}'.")
    try:
        header = json.loads(text)
        known = isinstance(header["name"], str) and isinstance(header["settings"], dict)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise FlSimError(f"The codec file {path} has a damaged header; save the codec anew.")
    return header, tensors
