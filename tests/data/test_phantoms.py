"""Phantoms: deterministic, and neither trivial nor hopeless."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score

from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset
from fl_sim.errors import FlSimError

_PRINT = """
import hashlib
from fl_sim.data import load_dataset
d = load_dataset("phantoms", {"train": 300, "size": 40})
print(hashlib.sha256(d.train.images.tobytes() + d.test.labels.tobytes()).hexdigest())
"""


def test_a_fresh_process_draws_the_same() -> None:
    dataset = load_dataset("phantoms", {"train": 300, "size": 40})
    content = dataset.train.images.tobytes() + dataset.test.labels.tobytes()
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", _PRINT], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.strip() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("task", "outputs"), [("binary", 2), ("multi-class", 4), ("multi-label", 5)]
)
def test_tasks_and_channels(task: str, outputs: int, channels: int) -> None:
    settings = {"task": task, "channels": channels, "train": 60, "validation": 20, "test": 30}
    dataset = load_dataset("phantoms", settings)
    assert dataset.task.outputs == outputs
    assert dataset.train.images.shape == (60, 28, 28, channels)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [60, 20, 30]
    labels = dataset.train.labels
    assert labels.shape == ((60, 5) if task == "multi-label" else (60,))
    assert set(np.unique(labels)) == set(range(2 if task == "multi-label" else outputs))


@pytest.mark.parametrize("channels", [1, 3])
def test_organs_to_segment(channels: int) -> None:
    settings = {"task": "segmentation", "size": 32, "channels": channels, "train": 60}
    dataset = load_dataset("phantoms", settings)
    assert dataset.task.is_segmentation
    assert dataset.task.label_names == ("background", "lungs", "heart")
    masks, images = dataset.train.labels, dataset.train.images.mean(axis=-1)
    assert masks.shape == (60, 32, 32) and masks.dtype == np.uint8
    assert not masks.flags.writeable
    share = [float((masks == value).mean()) for value in range(3)]
    assert 0.1 < share[1] < 0.2 and 0.015 < share[2] < 0.06
    # Lungs are darker than what is around them, and the heart is brighter.
    around = np.zeros_like(masks, dtype=bool)
    around[:, 12:20, 14:18] = True
    brightness = [images[masks == 1].mean(), images[around & (masks == 0)].mean()]
    assert brightness[0] < brightness[1] < images[masks == 2].mean()


def test_the_difficulty_of_organs() -> None:
    small = {"task": "segmentation", "train": 20, "validation": 2, "test": 2, "noise": 0}

    def contrast(difficulty: float) -> float:
        train = load_dataset("phantoms", small | {"difficulty": difficulty}).train
        images = train.images.mean(axis=-1)
        return float(images[train.labels == 2].mean() - images[train.labels == 1].mean())

    assert contrast(0) > 1.5 * contrast(1) > 0


@pytest.mark.parametrize("size", [8, 96, 1024])
def test_sizes(size: int) -> None:
    settings = {"size": size, "train": 3, "validation": 2, "test": 2, "channels": 1}
    dataset = load_dataset("phantoms", settings)
    assert dataset.size == size and dataset.train.images.std() > 20


def test_most_classes_and_seeds() -> None:
    small = {"train": 40, "validation": 2, "test": 2}
    nine = load_dataset("phantoms", small | {"classes": 9})
    assert nine.task.outputs == 9 and len(set(nine.train.labels)) == 9
    assert load_dataset("phantoms", small | {"task": "multi-label", "classes": 1}).task.outputs == 1
    other = load_dataset("phantoms", small | {"classes": 9, "seed": 1})
    assert (other.train.images != nine.train.images).any()


def test_patients_have_several_images_and_one_split() -> None:
    dataset = load_dataset("phantoms", {})
    groups = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.patients is not None
        assert len(set(split.patients)) < len(split) / 2
        groups.append(set(split.patients))
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "give 1 .grey. or 3 .colour."),
        ({"task": "binary", "classes": 3}, "'classes' is 3, but binary phantoms have 2 to 2"),
        ({"task": "segmentation", "classes": 2}, "segmentation phantoms have 3 to 3"),
        ({"classes": 10}, "multi-class phantoms have 2 to 9"),
        ({"size": 4}, "'size' is 4"),
        ({"difficulty": 2}, "'difficulty' is 2"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(FlSimError, match=message):
        load_dataset("phantoms", settings)


def floors(images: np.ndarray) -> tuple[float, float]:
    """SSIM of the mean image and of random pairs."""
    mean = images.astype(np.float64).mean(axis=0).round().astype(np.uint8)

    def ssim(one: np.ndarray, two: np.ndarray) -> float:
        return float(structural_similarity(one, two, channel_axis=-1, data_range=255))

    to_mean = [ssim(image, mean) for image in images[:40]]
    pairs = [ssim(*images[2 * i : 2 * i + 2]) for i in range(40)]
    return float(np.mean(to_mean)), float(np.mean(pairs))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_floors_are_like_real_images(channels: int) -> None:
    mean, pair = floors(load_dataset("phantoms", {"channels": channels}).train.images)
    assert 0.3 < mean < 0.6
    assert 0.2 < pair < 0.5


def auc_of_a_small_network(dataset: Dataset, epochs: int) -> float:
    """Train a small network; return its test AUC."""
    convolutions: list[torch.nn.Module] = []
    wide = dataset.channels
    for width in (16, 32, 64):
        convolutions += [torch.nn.Conv2d(wide, width, 3, padding=1), torch.nn.BatchNorm2d(width)]
        convolutions += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        wide = width
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            *convolutions, torch.nn.Flatten(), torch.nn.LazyLinear(dataset.task.outputs)
        )
        network(torch.zeros(2, dataset.channels, dataset.size, dataset.size))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    images, labels = dataset.train.tensors()
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(32):
            optimizer.zero_grad()
            dataset.task.loss(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    network.eval()
    images, labels = dataset.test.tensors()
    with torch.no_grad():
        scores = dataset.task.scores(network(images))
    return float(roc_auc_score(labels.numpy(), scores.numpy(), multi_class="ovr"))


def test_a_small_network_learns_something_but_not_everything() -> None:
    auc = auc_of_a_small_network(load_dataset("phantoms", {}), epochs=3)
    assert 0.75 < auc < 0.97
