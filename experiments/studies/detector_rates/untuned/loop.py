"""The loop that people write: images, an optimizer, epochs. Nothing here knows of ``fl_sim``."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

FILES = {
    "dermamnist": "dermamnist.npz",
    "pneumoniamnist": "pneumoniamnist.npz",
    "chestmnist": "chestmnist_nih1000.npz",
}
CHANNELS = {"dermamnist": 3, "pneumoniamnist": 1, "chestmnist": 1}
CLASSES = {"dermamnist": 7, "pneumoniamnist": 2, "chestmnist": 14}
TRAINING_IMAGES = {"dermamnist": 7007, "pneumoniamnist": 4708, "chestmnist": 725}
RATES = {"sgd": 0.03, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True)
class Images:
    """Images as networks take them, with labels.

    Args:
        pixels: float32 ``[n, channels, 28, 28]`` in [-1, 1].
        labels: int64 ``[n]``, or float32 ``[n, labels]`` of zeros and ones.
    """

    pixels: torch.Tensor
    labels: torch.Tensor


def read(root: Path, dataset: str, split: str = "train", colours: int | None = None) -> Images:
    """Read a split of a MedMNIST file.

    Args:
        root: folder of the files.
        dataset: key of ``FILES``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        colours: channels that are wanted; grey images are repeated.
    """
    with np.load(root / "medmnist" / FILES[dataset]) as file:
        images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    pixels = torch.from_numpy(images.reshape(len(images), 28, 28, -1).copy()).permute(0, 3, 1, 2)
    pixels = (pixels.float() / 255 - 0.5) / 0.5
    if colours is not None and pixels.shape[1] != colours:
        pixels = pixels[:, :1].repeat(1, colours, 1, 1)
    several = labels.shape[1] > 1
    target = torch.from_numpy(labels.astype(np.int64))
    return Images(pixels.contiguous(), target.float() if several else target[:, 0])


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        optimizer: ``"sgd"`` (momentum 0.9, cosine), ``"adam"`` or ``"adamw"``.
        decay: weight decay.
        augment: flips and shifts by up to two pixels.
        epochs: passes over the images.
        images: how many of the training split.
        steps: stop after so many steps, for a network as it is early in training.
        average: ``"ema"`` (decay 0.99) or ``"swa"`` (of the last quarter), which is then kept.
        seed: of images, batches and initial weights.
    """

    optimizer: str
    decay: float
    augment: bool
    epochs: int
    images: int
    steps: int | None = None
    average: str | None = None
    seed: int = 0

    def __str__(self) -> str:
        words = [self.optimizer, f"decay {self.decay:g}" if self.decay else "no decay"]
        words += ["augmented"] * self.augment
        words.append(f"{self.steps} steps" if self.steps else f"{self.epochs} epochs")
        return ", ".join([*words, f"{self.images} images"])


def fit(network: nn.Module, data: Images, training: Training) -> nn.Module:
    """Train a network in place, and return it, or the average that the training keeps."""
    torch.manual_seed(training.seed + 1000)
    chosen = torch.randperm(len(data.pixels))[: training.images]
    pixels, labels = data.pixels[chosen], data.labels[chosen]
    optimizer = _optimizer(network, training)
    steps = training.epochs * math.ceil(len(pixels) / 32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    several = labels.dim() == 2
    criterion = nn.BCEWithLogitsLoss() if several else nn.CrossEntropyLoss()
    averaged = _average(network, training)
    done = 0
    network.train()
    for _ in range(training.epochs):
        for batch in torch.randperm(len(pixels)).split(32):
            if len(batch) < 2 or done == training.steps:
                continue
            inputs = augmented(pixels[batch]) if training.augment else pixels[batch]
            optimizer.zero_grad()
            criterion(network(inputs), labels[batch]).backward()
            optimizer.step()
            if training.optimizer == "sgd":
                schedule.step()
            done += 1
            late = done > 0.75 * steps and done % 5 == 0
            if averaged is not None and (late or training.average == "ema"):
                averaged.update_parameters(network)
    if averaged is None:
        return network
    torch.optim.swa_utils.update_bn(pixels.split(64), averaged)
    return averaged


def _optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    parameters, rate = network.parameters(), RATES[training.optimizer]
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=0.9, weight_decay=training.decay, fused=True
        )
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=training.decay, fused=True)


def _average(network: nn.Module, training: Training) -> AveragedModel | None:
    if training.average is None:
        return None
    how = get_ema_multi_avg_fn(0.99) if training.average == "ema" else None
    return AveragedModel(network, multi_avg_fn=how)


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """Return images of which half are flipped, all shifted by up to two pixels."""
    flipped = torch.rand(len(pixels)) < 0.5
    pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return pixels.roll((down, right), (2, 3))


@torch.no_grad()
def accuracy(network: nn.Module, data: Images) -> float:
    """Return the share of right answers; of labels, where an image can have several."""
    network.eval()
    logits = torch.cat([network(part) for part in data.pixels.split(256)])
    if data.labels.dim() == 2:
        return float(((logits > 0) == (data.labels > 0.5)).float().mean())
    return float((logits.argmax(1) == data.labels).float().mean())
