"""Datasets, held-out sets and partitions over hospitals.

:func:`load_dataset` loads any dataset by name or path, :func:`fl_sim.data.splits.divide` sets
images aside, and :func:`fl_sim.data.partitions.partition` deals the rest out to hospitals.
"""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

from fl_sim.data.base import DATASETS, Dataset, DatasetSettings, DatasetSource
from fl_sim.data.cache import reporting
from fl_sim.errors import FlSimError, shown
from fl_sim.progress import Progress
from fl_sim.settings import parse
from fl_sim.task import TaskFamily

__all__ = ["data_root", "dataset_settings", "load_dataset", "published_name"]


def data_root(explicit: Path | None = None) -> Path | None:
    """Return the folder of the data: ``explicit``, else the environment's FL_SIM_DATA, else none.

    Raises:
        FlSimError: if the folder does not exist.
    """
    named = explicit or os.environ.get("FL_SIM_DATA") or None
    if named is None:
        return None
    root = Path(named).expanduser()
    if not root.is_dir():
        origin = "given" if explicit else "in the environment variable FL_SIM_DATA"
        raise FlSimError(f"The data root {root} {origin} is not a folder; create or correct it.")
    return root


_existing_root = data_root  # where a parameter has that name


def load_dataset(
    name: str,
    settings: dict[str, Any] | None = None,
    data_root: Path | None = None,
    progress: Progress | None = None,
    *,
    images: int | None = None,
) -> Dataset:
    """Load a dataset; a process loads the same one only once.

    Args:
        name: a registered name, or the path of an .npz file in MedMNIST's format.
        settings: the dataset's keys, for example ``{"size": 64}``.
        data_root: folder of the data; see :func:`data_root` for the default.
        progress: told how far a long preparation has come; by default whoever is told already.
        images: how many of each split to keep at most, for a quick try: evenly spaced over the
            split, the same ones every time; by default all.

    Raises:
        FlSimError: for an unknown name or key, for missing or broken files, and for fewer than one
            image.
    """
    if images is not None and images < 1:
        raise FlSimError(f"A dataset is cut to one image a split at least, not {images}.")
    text = json.dumps(settings or {}, sort_keys=True)
    root = _existing_root(data_root)
    if name.endswith(".npz"):
        from fl_sim.data.sources.npz import find

        name = str(find(name, root).absolute())
    with reporting(progress) if progress else contextlib.nullcontext():
        loaded = _load(name, text, root)
    return loaded if images is None else loaded.at_most(images)


def dataset_settings(name: str) -> type[DatasetSettings]:
    """Return the settings class of a dataset, so that keys can be checked before it is loaded.

    Raises:
        FlSimError: for an unknown name.
    """
    return _source(name).settings


def published_name(name: str) -> str | None:
    """Return which MedMNIST dataset a name or the path of a file means; ``None`` for none.

    It has one content at several sizes, and no settings that choose among its images.
    """
    from fl_sim.data.sources.medmnist import catalogue
    from fl_sim.data.sources.npz import medmnist_name

    if name.endswith(".npz"):
        return medmnist_name(Path(name).stem)
    return name if name in catalogue() else None


def task_family(name: str, settings: dict[str, Any]) -> TaskFamily:
    """Return what networks of a dataset are for, before it is loaded.

    Args:
        name: see :func:`load_dataset`.
        settings: the dataset's keys.

    Raises:
        FlSimError: for an unknown name or key.
    """
    source = _source(name)
    return source.family(parse(source.settings, settings, "[dataset]"))


def _source(name: str) -> DatasetSource:
    if name.endswith(".npz"):
        from fl_sim.data.sources.npz import SOURCE

        return SOURCE
    try:
        return DATASETS.get(name)
    except FlSimError:
        if not Path(name).suffix and len(Path(name).parts) < 2:
            raise
        raise FlSimError(
            f"The dataset {shown(name)} is no registered name and no .npz file; give the path of "
            f"an .npz file in MedMNIST's format, or a name (see fl-sim list datasets)."
        ) from None


@functools.lru_cache(maxsize=8)
def _load(name: str, settings: str, root: Path | None) -> Dataset:
    source = _source(name)
    parsed = parse(source.settings, json.loads(settings), "[dataset]")
    return source.load(name, parsed, root)
