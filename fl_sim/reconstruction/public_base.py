"""A base that nobody's secrets are in: a network trained on a public part of a dataset."""

from dataclasses import dataclass

import numpy as np

from fl_sim.data.base import Dataset, Split
from fl_sim.data.partitions import single_labels
from fl_sim.data.splits import HeldOutSettings, divide, stratified
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, numpy_generator
from fl_sim.sealing.bases import State
from fl_sim.training import LocalTraining, TrainingSettings, train


@dataclass(frozen=True)
class Parts:
    """A dataset's images by whose they are; no row is in two of them.

    Test and held-out images that show the same photograph as a training image are left out (see
    :mod:`fl_sim.data.duplicates`).

    Args:
        public: that the base is trained on.
        attacker: that shadow heads are trained on.
        held_out: the owner's.
        test: for measuring.
    """

    public: Split
    attacker: Split
    held_out: Split
    test: Split


def parted(dataset: Dataset, share: float, seed: int = 0) -> Parts:
    """Cut a dataset's training images into a public part and an attacker's.

    Args:
        dataset: with one class an image.
        share: of the training images that is public, each class in proportion, in (0, 1).
        seed: of the draw.

    Raises:
        FlSimError: if one of the parts would have no images.
    """
    divided = divide(dataset, HeldOutSettings(public_images=0, duplicates="drop"), seed)
    count = int(share * len(divided.train))
    if not 0 < count < len(divided.train):
        raise FlSimError(
            f"A share of {share:g} of {len(divided.train)} training images leaves the base or the "
            f"attacker without any; choose another."
        )
    classes = single_labels(divided.train.labels, dataset.task)
    public = stratified(classes, count, numpy_generator(seed, "public base"))
    rest = np.setdiff1d(np.arange(len(divided.train)), public)
    return Parts(
        divided.train.subset(public),
        divided.train.subset(rest),
        divided.held_out,
        divided.test,
    )


def train_base(
    spec: ModelSpec,
    public: Split,
    dataset: Dataset,
    settings: TrainingSettings,
    seed: int = 0,
    progress: Progress = SILENT,
) -> State:
    """Train a network on public images; a head is then trained on it by whoever has images.

    Args:
        spec: the network.
        public: images with labels.
        dataset: whose task it is.
        settings: how.
        seed: of initial weights and batches.
        progress: where to report.

    Returns:
        Every entry of the network.
    """
    network = build(spec, seed)
    stream = Stream(seed, ("public base",))
    train(LocalTraining(network, spec, public, dataset.task, settings, stream, progress=progress))
    return state_of(network)
