"""Whose images are whose in the study, and what the public base makes of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.artifact import Artifact, read_artifact, write_artifact
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, Split, joined
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.reconstruction.few_shot import FewShotSettings
from fl_sim.reconstruction.public_base import Parts, parted, train_base
from fl_sim.reconstruction.sets import balanced_sets
from fl_sim.sealing.heads import HeadSettings, features_of, find_head
from fl_sim.training import TrainingSettings

SHARE = 0.3
BASE_TRAINING = TrainingSettings(epochs=8, learning_rate=1e-3)
HEAD = HeadSettings(epochs=150, learning_rate=0.002)
"""A rate at which full-batch steps on the base's features do not swing."""
MOST_VICTIMS = 20
BASE = "base.safetensors"


@dataclass(frozen=True)
class Known:
    """Images, and what the base gives for them.

    Args:
        features: ``[n, D]``.
        pixels: ``[n, channels, height, width]`` in [0, 1].
        labels: ``[n]``.
    """

    features: torch.Tensor
    pixels: torch.Tensor
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """The case of the study.

    Args:
        dataset: skin images.
        parts: whose are whose.
        base: the network trained on the public ones.
        public, attacker: their images.
        pool: held-out and test images, of which victims have some.
    """

    dataset: Dataset
    parts: Parts
    base: Artifact
    public: Known
    attacker: Known
    pool: Known

    @property
    def classes(self) -> int:
        """Rows of a head."""
        return self.dataset.task.outputs

    def gallery(self) -> list[torch.Tensor]:
        """Return the pool's images of each class."""
        labels = torch.from_numpy(self.pool.labels)
        return [self.pool.pixels[labels == label] for label in range(self.classes)]

    def victims(self, settings: FewShotSettings, seed: int) -> NDArray[np.int32]:
        """Return victims' images as rows of the pool, ``[victims, N]``; no two share one."""
        least = int(np.bincount(self.pool.labels, minlength=self.classes).min())
        most = min(MOST_VICTIMS * settings.averaged, least // settings.images_per_class)
        count = most // settings.averaged * settings.averaged
        stream = Stream(seed, ("victims",))
        return balanced_sets(
            self.pool.labels, self.classes, count, settings.images_per_class, stream
        )


def world_of(
    out: Path, data_root: Path | None, name: str = "dermamnist", progress: Progress = SILENT
) -> World:
    """Return the case; the base is trained once and kept in the study's folder.

    Args:
        out: that folder.
        data_root: folder of data files.
        name: of the dataset.
        progress: where to report.
    """
    dataset = load_dataset(name, {}, data_root)
    parts = parted(dataset, SHARE)
    spec = ModelSpec(
        name="cnn", channels=dataset.channels, size=dataset.size, classes=dataset.task.outputs
    )
    path = out / BASE
    if not path.exists():
        state = train_base(spec, parts.public, dataset, BASE_TRAINING, progress=progress)
        write_artifact(path, spec, state)
    base = read_artifact(path)
    network = base.model()
    head = find_head(network, base.spec, 1)

    def known(split: Split) -> Known:
        pixels, labels = split.tensors()
        return Known(features_of(network, head, split), pixels, labels.numpy())

    pool = joined(parts.held_out, parts.test)
    return World(dataset, parts, base, known(parts.public), known(parts.attacker), known(pool))
