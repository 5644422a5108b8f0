"""Codecs apart from any attack: train one on a dataset, and measure what it costs and keeps."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fl_sim.codec import CODECS, Codec, FitReport
from fl_sim.codecs.files import load_codec, save_codec
from fl_sim.codecs.library import STREAM
from fl_sim.component import Component
from fl_sim.data import data_root as find_data_root
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, Split
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.compression import measure_compression
from fl_sim.overrides import apply_override
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, numpy_generator

SplitName = Literal["train", "validation", "test"]


def chosen_codec(name: str, overrides: Iterable[str]) -> Component:
    """Return a codec as the command line chooses it, checked.

    Args:
        name: registered.
        overrides: ``"key=value"`` of its settings.

    Raises:
        FlSimError: if there is no such codec, or a setting is wrong.
    """
    values: dict[str, Any] = {"name": name}
    for override in overrides:
        apply_override(values, override)
    return Component.of(values, "The codec").checked(CODECS, "The codec")


def train_codec(
    codec: str | Mapping[str, Any] | Component,
    dataset: str | Mapping[str, Any],
    out: Path | str,
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    progress: Progress = SILENT,
) -> FitReport:
    """Train a codec on a dataset's train split and write it to a file.

    Beside the file, ``<out>.json`` has the curves of the validation split, and what it was trained
    on.

    Args:
        codec: a registered codec, by name or as a table of its name and settings, or chosen.
        dataset: a registered dataset or an .npz file, likewise.
        out: the codec file.
        images: train on so many of the images only, drawn at random.
        seed: of the weights, the draws and the batches.
        data_root: folder of data files.
        progress: told how far training has come.

    Raises:
        FlSimError: if a name or a setting is wrong, a file is missing, or training diverges.
    """
    choice = Component.of(codec, "The codec")
    fresh: Codec[Any] = choice.build(CODECS, "The codec")
    loaded = _load(dataset, data_root, progress)
    train, validation = (_pixels(s, images, seed) for s in (loaded.train, loaded.validation))
    stream = STREAM if seed == 0 else Stream(seed, ("codec",))
    report = fresh.fit(train, validation, stream, progress)
    save_codec(Path(out), fresh)
    told = {
        "codec": choice.name,
        "settings": fresh.settings.model_dump(mode="json"),
        "dataset": loaded.name,
        "files": [{"name": f.name, "sha256": f.sha256} for f in loaded.files],
        "images": len(train),
        "seed": seed,
        "steps": report.steps,
        "seconds": report.seconds,
        "stopped": report.stopped,
        "curves": report.curves,
    }
    beside = Path(out).with_name(Path(out).name + ".json")
    write_atomically(beside, (json.dumps(told, indent=2) + "\n").encode())
    return report


def evaluate_codec(
    codec: Path | str,
    dataset: str | Mapping[str, Any],
    split: SplitName = "test",
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Encode and decode a dataset's images and measure rate and fidelity.

    Args:
        codec: a codec file, or the name of a lossless codec.
        dataset: a registered dataset or an .npz file, by name or as a table.
        split: which images.
        images: how many of them, drawn at random; by default all.
        seed: of the draw.
        data_root: folder of data files.
        progress: told how far it has come.

    Returns:
        ``images``, ``bpp``, ``bytes_per_image``, ``p_ratio`` (against gzip), ``psnr``, ``ssim``,
        ``ms_ssim`` (with the number of scales, where the images are too small for five), and
        ``undecoded``.

    Raises:
        FlSimError: if a name is wrong, or a file is missing or broken.
    """
    opened = open_codec(codec)
    loaded = _load(dataset, data_root, progress)
    parts = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}
    chosen = _pixels(parts[split], images, seed)
    codes = opened.encode(chosen)
    decoded = opened.decode(codes, (loaded.channels, loaded.size, loaded.size))
    rows = measure_compression(chosen, decoded, codes)
    return {"images": float(len(chosen)), **{row.metric: row.value for row in rows}}


def open_codec(codec: Path | str) -> Codec[Any]:
    """Open a codec file, or a lossless codec by its name.

    Raises:
        FlSimError: if it is neither.
    """
    if Path(codec).exists() or str(codec).endswith(".safetensors"):
        return load_codec(Path(codec))
    kind = CODECS.get(str(codec))
    if not kind.lossless:
        raise FlSimError(
            f"The codec '{codec}' has to be trained first (fl-sim codec train {codec} "
            f"--dataset ... --out {codec}.safetensors); then give that file."
        )
    return kind(kind.Settings())


def _load(
    dataset: str | Mapping[str, Any], data_root: Path | str | None, progress: Progress
) -> Dataset:
    choice = Component.of(dataset, "The dataset")
    root = find_data_root(Path(data_root) if data_root is not None else None)
    return load_dataset(choice.name, choice.settings, root, progress)


def _pixels(split: Split, images: int | None, seed: int) -> torch.Tensor:
    if images is None or images >= len(split):
        return split.tensors()[0]
    generator = numpy_generator(seed, "codec images")
    chosen = np.sort(generator.choice(len(split), size=images, replace=False))
    return split.batch(chosen)[0]
