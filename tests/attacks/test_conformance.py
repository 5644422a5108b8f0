"""What every registered attack promises: its key tells nothing of the images but what it says."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.artifact import Key
from fl_sim.attacks.base import ATTACKS, Attack, Inside, draw
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, Split
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, TrainingSettings, train

SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=4)
SETTINGS: dict[str, dict[str, Any]] = {
    "answers": {
        "images": 2,
        "codec": {"name": "factorized", "N": 8, "M": 8, "max_steps": 20, "validate_every": 20},
        "external": {"name": "phantoms", "size": 16, "channels": 1, "seed": 8},
        "frame": 16,
        "side": 10,
        "features": 90,
        "rehearsed": "none",
        "preparation": 0,
        "passes": 1,
        "steps": 1,
    },
    "dec": {"images": 3, "codec": "png", "coding": "reed_solomon"},
    "combined": {
        "parts": {
            "a": {"name": "transpose", "images": 3},
            "b": {"name": "dec", "images": 3, "codec": "png"},
        }
    },
}
"""Of attacks whose defaults do not fit; of any other, three images."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(
        "phantoms", {"size": 16, "channels": 1, "train": 40, "validation": 4, "test": 4}
    )


def _attack(name: str) -> Attack[Any]:
    settings = SETTINGS.get(name, {"images": 3})
    return Component(name=name, settings=settings).build(ATTACKS, "[attack]")


def _inside(data: Split, dataset: Dataset) -> Inside:
    public = load_dataset("phantoms", {"size": 16, "channels": 1, "train": 20, "seed": 5}).train
    return Inside(data, dataset.task, SPEC, Stream(0), public=public)


def _key(name: str, dataset: Dataset, pixels: Any) -> Key:
    data = replace(dataset.train, images=pixels)
    return _attack(name).plan(_inside(data, dataset)).key


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_key_is_that_of_other_images_with_the_same_labels(name: str, dataset: Dataset) -> None:
    pixels = np.asarray(dataset.train.images)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    key, other = (_key(name, dataset, images) for images in (pixels, noise))
    assert set(key.tensors) == set(other.tensors)
    for tensor in key.tensors:
        assert torch.equal(key.tensors[tensor], other.tensors[tensor]), tensor
    settings, others = (dict(_flat(k.settings)) for k in (key, other))
    told = {path for path in settings | others if settings.get(path) != others.get(path)}
    assert {path.rpartition(".")[2] for path in told} <= ATTACKS.get(name).key_tells
    # What it may tell are numbers: a size, a count.
    assert all(isinstance(settings[path], int) for path in told)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_key_holds_no_pixel_of_a_stolen_image(name: str, dataset: Dataset) -> None:
    plan = _attack(name).plan(_inside(dataset.train, dataset))
    rows = [
        bytes(row) for row in (plan.targets * 255).round().to(torch.uint8).flatten(0, 2).numpy()
    ]
    rows = [row for row in rows if len(set(row)) > 4]
    kept = b"".join(t.contiguous().numpy().tobytes() for t in plan.key.tensors.values())
    assert rows and not any(row in kept for row in rows)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_a_key_says_whether_it_tells_the_labels_of_the_stolen_images(
    name: str, dataset: Dataset
) -> None:
    labels = np.asarray(dataset.train.labels)
    keys = []
    for shift in (0, 1):
        data = replace(dataset.train, labels=(labels + shift) % dataset.task.outputs)
        keys.append(_attack(name).plan(_inside(data, dataset)).key)
    key, other = keys
    same = key.tensors.keys() == other.tensors.keys() and all(
        torch.equal(key.tensors[tensor], other.tensors[tensor]) for tensor in key.tensors
    )
    assert same is not _attack(name).key_has_labels


@pytest.mark.parametrize("name", ATTACKS.names())
def test_an_attack_says_whether_its_training_is_the_ordinary_one(
    name: str, dataset: Dataset
) -> None:
    attack = _attack(name)
    plan = attack.plan(_inside(dataset.train, dataset))
    states = []
    for attacked in (False, True):
        run = LocalTraining(
            build(SPEC, 1),
            SPEC,
            dataset.train,
            dataset.task,
            TrainingSettings(epochs=0.5, batch_size=10),
            Stream(3),
        )
        if attacked:
            attack.train(run, plan)
        else:
            train(run)
        states.append(state_of(run.model))
    same = all(torch.equal(states[0][entry], states[1][entry]) for entry in states[0])
    assert same is attack.trains_honestly


def test_images_are_drawn_once_each_in_random_order(dataset: Dataset) -> None:
    inside = _inside(dataset.train, dataset)
    drawn = draw(inside, 40)
    assert sorted(drawn.tolist()) == list(range(40)) and sorted(drawn.tolist()) != drawn.tolist()
    assert np.array_equal(draw(inside, 40), drawn)
