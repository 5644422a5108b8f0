"""A small clean network that was trained on phantoms, made once for all tests of a file."""

import numpy as np
import pytest
import torch

from fl_sim.data import load_dataset
from fl_sim.data.base import Split, Task
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, TrainingSettings, train

SPEC = ModelSpec(name="cnn", channels=3, size=12, classes=4)
STREAM = Stream(5, ("hospital", 0))
State = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def phantoms() -> tuple[Split, Split, Task]:
    """Training and held-out images, and their task."""
    data = load_dataset("phantoms", {"size": SPEC.size})
    train_images = data.train.subset(np.arange(300))
    return train_images, data.validation.subset(np.arange(96)), data.task


@pytest.fixture(scope="session")
def trained(phantoms: tuple[Split, Split, Task]) -> tuple[State, State]:
    """The state that training began with, and the one that it left."""
    torch.set_num_threads(1)
    data, _, task = phantoms
    model = build(SPEC, seed=3)
    before = state_of(model)
    settings = TrainingSettings(epochs=3, batch_size=32)
    train(LocalTraining(model, SPEC, data, task, settings, STREAM))
    return before, state_of(model)
