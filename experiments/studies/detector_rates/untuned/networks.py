"""Networks as people build them: torchvision's, with its names, and two written out here."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torchvision import models


class SmallConvNet(nn.Module):
    """Five convolutions and three linear layers, in the manner of MedMNIST's first example."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer1 = self._block(channels, 16)
        self.layer2 = nn.Sequential(self._block(16, 16), nn.MaxPool2d(2))
        self.layer3 = self._block(16, 64)
        self.layer4 = self._block(64, 64)
        self.layer5 = nn.Sequential(self._block(64, 64, padding=1), nn.MaxPool2d(2))
        self.fc = nn.Sequential(
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    @staticmethod
    def _block(inputs: int, outputs: int, padding: int = 0) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[n, channels, 28, 28]`` to logits ``[n, classes]``."""
        x = self.layer2(self.layer1(images))
        x = self.layer5(self.layer4(self.layer3(x)))
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits


class Perceptron(nn.Module):
    """Two hidden layers with dropout; no normalisation."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels * 28 * 28, 512)
        self.fc2 = nn.Linear(512, 256)
        self.head = nn.Linear(256, classes)
        self.drop = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map ``[n, channels, 28, 28]`` to logits ``[n, classes]``."""
        x = self.drop(self.fc1(images.flatten(1)).relu())
        logits: torch.Tensor = self.head(self.drop(self.fc2(x).relu()))
        return logits


def _resnet(make: Callable[..., nn.Module], small: bool, channels: int, classes: int) -> nn.Module:
    network = make(num_classes=classes)
    if small:
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


def _densenet(channels: int, classes: int) -> nn.Module:
    network = models.densenet121(num_classes=classes)
    network.features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.features.pool0 = nn.Identity()
    return network


def _mobilenet(channels: int, classes: int) -> nn.Module:
    network = models.mobilenet_v3_small(num_classes=classes)
    if channels != 3:
        network.features[0][0] = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn": SmallConvNet,
    "mlp": Perceptron,
    "resnet18": partial(_resnet, models.resnet18, False),
    "resnet18-small": partial(_resnet, models.resnet18, True),
    "resnet34": partial(_resnet, models.resnet34, False),
    "densenet121-small": _densenet,
    "mobilenet": _mobilenet,
}
"""``NETWORKS[name](channels, classes)``, for images of 28 pixels; ``-small`` is a stem of one 3x3
convolution of stride 1 without pooling."""


def build(architecture: str, channels: int, classes: int, seed: int) -> nn.Module:
    """Return a network with fresh weights; two calls with one seed give the same ones."""
    torch.manual_seed(seed)
    return NETWORKS[architecture](channels, classes)
