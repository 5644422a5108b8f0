"""The app's own network and data; nothing here knows of a defence."""

import functools

import numpy as np
import torch
from torch import nn

Data = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Two convolutions and a linear layer, for colour images of 28 x 28 pixels in [-1, 1]."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.head = nn.Linear(32 * 7 * 7, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``[n, classes]`` of images ``[n, 3, 28, 28]``."""
        logits: torch.Tensor = self.head(self.features(images).flatten(1))
        return logits


@functools.cache
def load(split: str, path: str = "") -> Data:
    """Return a split's images, floats in [0, 1], and labels.

    Args:
        split: ``"train"``, ``"val"`` (the server's own, held out) or ``"test"``.
        path: of an .npz file in MedMNIST's format; empty for embedded phantoms.
    """
    if path:
        with np.load(path) as file:
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    else:
        from fl_sim import load_dataset

        phantoms = load_dataset("phantoms")
        part = {"train": phantoms.train, "val": phantoms.validation, "test": phantoms.test}[split]
        images, labels = part.images, part.labels
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(np.array(labels)).long().flatten()


def share(data: Data, number: int, of: int) -> Data:
    """Return a client's share: every ``of``-th image."""
    images, labels = data
    return images[number::of], labels[number::of]


def train(net: nn.Module, data: Data, epochs: int, learning_rate: float) -> float:
    """Train in place; return the last batch's loss."""
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=32, shuffle=True, drop_last=True
    )
    net.train()
    loss = torch.zeros(())
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images * 2 - 1), labels)
            loss.backward()
            optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Return the share of images that are classified rightly."""
    images, labels = data
    return float((net.eval()(images * 2 - 1).argmax(1) == labels).float().mean())
