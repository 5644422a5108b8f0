"""A network of one's own in the verbs and in scenarios: ``python own_model.py``, wherever it lies.

Nothing is registered: verbs and scenarios take the object, a function that makes it, or that
function's name as ``package.module:function``, which may also stand in a TOML file.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import fl_sim
from experiments.run.result import Result

DATA = {"name": "phantoms", "size": 16, "train": 240, "validation": 60, "test": 60}


class Net(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 24, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1))
        self.head = nn.Linear(24 * 16, classes)
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]."""
        found = self.stem(images)
        logits: torch.Tensor = self.head(self.pool(found + self.block(found)).flatten(1))
        return logits


def make(classes: int, channels: int) -> Net:
    """Make one; asked for are those of classes, channels and size that a function names."""
    return Net(classes, channels)


def verbs() -> pd.DataFrame:
    """Hide images in a network with the verb, and read them back from what it becomes."""
    data = fl_sim.load_dataset("phantoms", {"size": 16})
    attacked = fl_sim.attack(
        "transpose",
        Net(),
        data.train,
        images=8,
        memory_steps=8,
        training={"epochs": 2},
        progress=False,
    )
    stolen = fl_sim.extract(attacked.model, attacked.key)
    return fl_sim.measure(stolen, attacked.originals, public=data.test)


def scenario(model: Any, out: Path | None = None) -> Result:
    """Run a scenario with it."""
    attack = {"name": "transpose", "images": 8}
    values = {"mode": "centralized", "dataset": DATA, "attack": attack, "defense": "lwlrd"}
    return fl_sim.run({**values, "model": model, "training": {"epochs": 2}}, out)


if __name__ == "__main__":
    print(verbs().to_string())
    for model in (Net(), make, f"{Path(__file__).stem}:make"):
        table = scenario(model).summary()
        print(table[["stage", "ssim raw", "ssim strongest", "auc"]].to_string())
