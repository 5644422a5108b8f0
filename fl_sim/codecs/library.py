"""Codecs that were trained outside: read from a file, or trained once on a dataset and cached."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fl_sim.codec import CODECS, Codec
from fl_sim.codecs.files import load_codec, save_codec
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset
from fl_sim.data.cache import cache_folder
from fl_sim.files import built_once
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream

STREAM = Stream(0, ("codec",))
"""A codec is trained before any study, so its randomness does not follow a scenario's seed."""


def trained_codec(
    codec: Component,
    external: Component | None,
    data_root: Path | None,
    progress: Progress = SILENT,
) -> Codec[Any]:
    """Return a codec ready to encode and decode.

    Args:
        codec: a registered codec and its settings.
        external: the dataset it is trained on; ``None`` for a lossless codec.
        data_root: folder of data files.
        progress: told how far training has come.

    Raises:
        FlSimError: if the dataset or a setting is wrong, or training diverges.
    """
    fresh = codec.build(CODECS, "[attack] codec")
    if external is None:
        return fresh
    dataset = load_dataset(external.name, external.settings, data_root, progress)
    path = (
        cache_folder() / "codecs" / f"{codec.name}-{_digest(codec, external, dataset)}.safetensors"
    )
    with built_once(path):
        if not path.is_file():
            train, _ = dataset.train.tensors()
            validation, _ = dataset.validation.tensors()
            fresh.fit(train, validation, STREAM, progress)
            save_codec(path, fresh)
    return load_codec(path)


def _digest(codec: Component, external: Component, dataset: Dataset) -> str:
    ingredients = {
        "codec": codec.model_dump(mode="json"),
        "dataset": external.model_dump(mode="json"),
        "files": [file.sha256 for file in dataset.files],
        "versions": [version("torch"), version("compressai")],
    }
    text = json.dumps(ingredients, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
