"""Codec files: settings, weights and tables in one safetensors file, or what decoding needs of it.

What is read is what was written, tables included: tables built anew on another machine could differ
in one frequency, and then nothing decodes.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fl_sim.artifact import read_safetensors
from fl_sim.claims import TooManyElements, building_within
from fl_sim.codec import CODECS, Codec
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.plain import parse_json
from fl_sim.settings import parse

_HEADER = "fl_sim.codec"
_ENCODER_TOO = 8
_SLACK = 1 << 18


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
    wanted = parse(kind.Settings, settings, f"The codec '{name}'")
    # A decoder alone is there for a codec that also has an encoder, of about its size; and while
    # they are built, some weights are drawn twice.
    elements = _ENCODER_TOO * sum(tensor.numel() for tensor in tensors.values())
    try:
        with building_within(elements + _SLACK):
            codec = kind(wanted)
    except TooManyElements:
        raise FlSimError(
            f"The codec '{name}' as its settings describe it has far more weights than are given."
        ) from None
    codec.load_tensors(tensors)
    return codec


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensors, metadata = read_safetensors(path, "codec file")
    text = metadata.get(_HEADER)
    if text is None:
        raise FlSimError(f"The file {path} is not a codec file: its header lacks '{_HEADER}'.")
    header = parse_json(text, f"The header of the codec file {path}")
    try:
        known = isinstance(header["name"], str) and isinstance(header["settings"], dict)
    except (KeyError, TypeError):
        known = False
    if not known:
        raise FlSimError(f"The codec file {path} has a damaged header; save the codec anew.")
    return header, tensors
