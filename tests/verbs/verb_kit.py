"""Networks and images as somebody outside has them."""

import numpy as np
import torch
from torch import nn

import fl_sim
from fl_sim.data.base import Split

DATA = fl_sim.load_dataset("phantoms")
FEW = DATA.train.subset(np.arange(64))
HELD_OUT = DATA.validation.subset(np.arange(48))


class Own(nn.Module):
    """A network of nobody's, with idioms that people use."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 5, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 12 * 12, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.conv(images)).relu()
        logits: torch.Tensor = self.head(found.view(found.size(0), -1))
        return logits


class Scaled(Own):
    """One with a parameter that nothing initialises anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 12, 1, 1), 1.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = (self.norm(self.conv(images)) * self.scale).relu()
        logits: torch.Tensor = self.head(found.flatten(1))
        return logits


def pixels(split: Split = FEW) -> torch.Tensor:
    return split.tensors()[0]


def labels(split: Split = FEW) -> torch.Tensor:
    return split.tensors()[1]
