"""Images of one's own, in two ways: ``python own_dataset.py`` runs both, wherever it lies.

A file in MedMNIST's format is named by its path; a source that is registered has a name and
settings of its own, and draws or reads its images itself.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fl_sim
from experiments.run.result import Result
from fl_sim.data.base import DATASETS, Dataset, DatasetSettings, DatasetSource, Split, Task

Array = NDArray[Any]
SPLITS = {"train": 160, "val": 60, "test": 60}


def stripes(count: int, size: int, seed: int) -> tuple[Array, Array]:
    """Draw images [n, size, size, 3] of 8 bits, with upright (0) or level (1) stripes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    waves = np.sin(np.arange(size) * 0.9 + random.uniform(0, 6, (count, 1)))
    grey = np.where(labels[:, None, None], waves[:, :, None], waves[:, None, :])
    colour = grey[..., None] * random.uniform(20, 80, (count, 1, 1, 3))
    noise = random.normal(128, 8, (count, size, size, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8), labels


def write(path: Path, size: int = 28) -> Path:
    """Write arrays as a file: images of 8 bits, and a column of classes for each split."""
    arrays: dict[str, Array] = {}
    for seed, (split, count) in enumerate(SPLITS.items()):
        images, labels = stripes(count, size, seed)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(path, **arrays)
    return path


def load(name: str, settings: DatasetSettings, data_root: Path | None) -> Dataset:
    """Return the same images as a source does, of any size."""
    parts = (stripes(n, settings.size, seed) for seed, n in enumerate(SPLITS.values()))
    train, validation, test = (Split(images, labels) for images, labels in parts)
    task = Task("binary-class", ("upright", "level"))
    return Dataset(name, task, train, validation, test, (), "stripes, two ways round")


DATASETS.register("stripes", "stripes, two ways round")(DatasetSource(DatasetSettings, load))


def example(out: Path) -> dict[str, Result]:
    """Steal images from the file, and from the source at another size."""
    attack = {"name": "dec", "images": 16, "codec": "png"}
    common = {"mode": "centralized", "model": "cnn", "attack": attack, "training": {"epochs": 1}}
    out.mkdir(parents=True, exist_ok=True)
    file = str(write(out / "stripes.npz"))
    source = {"name": "stripes", "size": 16}
    return {
        "file": fl_sim.run({**common, "dataset": file}, out / "file"),
        "source": fl_sim.run({**common, "dataset": source}, out / "source"),
    }


if __name__ == "__main__":
    for name, result in example(Path("own-dataset")).items():
        table = result.summary()[["stage", "ssim raw", "images_intact", "auc"]]
        print(f"\n{name}\n{table.to_string()}")
