"""Heads: the last layers of a network, found, taken apart, and trained on a frozen base."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.settings import MOST_EPOCHS, Settings
from fl_sim.training import normalized

_BATCH = 256

Activation = Literal["square", "relu"]
"""What stands between two layers."""


class HeadSettings(Settings):
    """How a head is trained on frozen features: full-batch SGD without momentum.

    As in the experiments of Allison et al. 2025 (arXiv 2505.14323), whose rates for a linear head
    on MNIST are learning rate 0.01, weight decay 1e-5 and initial deviation 0.002.

    Args:
        epochs: steps, each on all images.
        learning_rate: of every step.
        weight_decay: L2 penalty, of biases too.
        init_std: deviation of the initial weights; biases begin at 0. With two layers it must be
            larger, for the square has no slope at 0.
    """

    epochs: int = Field(600, ge=1, le=MOST_EPOCHS)
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    init_std: float = Field(0.002, ge=0)


@dataclass(frozen=True)
class Linear:
    """A linear layer's numbers.

    Args:
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``; ``None`` for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def matrix(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return ``[outputs, inputs + 1]`` with the bias last."""
        bias = torch.zeros(len(self.weight)) if self.bias is None else self.bias
        return torch.cat([self.weight, bias[:, None]], dim=1).double().cpu().numpy()


def head_logits(
    head: tuple[Linear, ...], features: torch.Tensor, activation: Activation = "square"
) -> torch.Tensor:
    """Return a head's logits ``[n, outputs]``: linear layers with squares, or ReLUs, between.

    Args:
        head: its layers, one or two.
        features: ``[n, inputs]``.
        activation: between two.
    """
    active = torch.square if activation == "square" else torch.relu
    for number, layer in enumerate(head):
        inputs = active(features) if number else features
        features = nn.functional.linear(inputs, layer.weight, layer.bias)
    return features


def find_head(
    network: nn.Module, spec: ModelSpec, layers: int, activation: Activation = "square"
) -> tuple[str, ...]:
    """Return the names of the linear layers that a network ends with.

    They are looked for in the order in which the network calls them, and the network's answers to
    two random images must be theirs alone.

    Args:
        network: in any mode, which it keeps.
        spec: how it is built.
        layers: how many, 1 or 2; between two there must be the activation and nothing else.
        activation: between two.

    Raises:
        FlSimError: if the network does not end so.
    """
    images = Stream(0).torch_generator("images for finding a head")
    pixels = torch.rand(2, *spec.input_shape, generator=images)
    device = next(network.parameters()).device
    called: list[str] = []
    given: dict[str, torch.Tensor] = {}

    def note(name: str, inputs: torch.Tensor) -> None:
        called.append(name)
        given[name] = inputs

    with torch.no_grad(), _evaluating(network), _watching(network, note):
        answers = network(normalized(pixels.to(device)))
    names = tuple(called[-layers:])
    if spec.task == "classification" and len(names) == layers == len(set(names)):
        features = given[names[0]]
        if features.ndim == 2 and answers.ndim == 2 and len(features) == 2:
            own = head_logits(read_head(network, names), features, activation)
            if own.shape == answers.shape and torch.allclose(own, answers, 1e-4, 1e-5):
                return names
    between = "a square" if activation == "square" else "a ReLU"
    end = "one linear layer" if layers == 1 else f"a linear layer, {between} and a linear layer"
    raise FlSimError(
        f"The network '{spec.name.partition('@')[0]}' does not end with {end} on features [n, D], "
        f"which is what can be sealed; take a network that does, such as resnet18"
        + ("." if layers == 1 else ", with model = square_head around it.")
    )


def entries_of(network: nn.Module, head: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that a head's weights and biases have in the state dictionary."""
    return tuple(
        f"{name}.{own}"
        for name in head
        for own, _ in network.get_submodule(name).named_parameters(recurse=False)
    )


def read_head(network: nn.Module, head: tuple[str, ...]) -> tuple[Linear, ...]:
    """Return the layers of these names."""
    found = []
    for name in head:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bias = None if layer.bias is None else layer.bias.detach()
        found.append(Linear(layer.weight.detach(), bias))
    return tuple(found)


@torch.no_grad()
def write_head(network: nn.Module, names: tuple[str, ...], head: tuple[Linear, ...]) -> None:
    """Give a network the layers of a head, in place."""
    for name, new in zip(names, head, strict=True):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(new.weight)
        if layer.bias is not None and new.bias is not None:
            layer.bias.copy_(new.bias)


@torch.no_grad()
def features_of(network: nn.Module, head: tuple[str, ...], images: Split) -> torch.Tensor:
    """Return what a network's head is given for images, ``[n, D]``, on the CPU.

    The network computes in evaluation mode, so that its buffers stay as they are.

    Args:
        network: frozen.
        head: names of its last layers.
        images: any number.
    """
    device = next(network.parameters()).device
    parts: list[torch.Tensor] = []

    def note(name: str, inputs: torch.Tensor) -> None:
        if name == head[0]:
            parts.append(inputs.cpu())

    with _evaluating(network), _watching(network, note):
        for first in range(0, len(images), _BATCH):
            pixels, _ = images.batch(slice(first, first + _BATCH))
            network(normalized(pixels.to(device)))
    return torch.cat(parts)


def train_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    settings: HeadSettings,
    stream: Stream,
    *,
    hidden: int = 0,
    bias: bool = True,
    progress: Progress = SILENT,
) -> tuple[tuple[Linear, ...], list[float]]:
    """Train a head on a frozen base's features, from the start, by full-batch gradient descent.

    ``w <- w - rate (gradient of the mean loss + weight decay w)``, for weights and biases alike.

    Args:
        features: float ``[n, D]``.
        labels: of the task.
        task: whose loss is minimised.
        settings: how.
        stream: where the initial weights are drawn from, layer by layer.
        hidden: units between two layers; 0 for one layer.
        bias: whether layers have biases.
        progress: where to report.

    Returns:
        The layers, and the loss before each step.

    Raises:
        FlSimError: if there are no images, or the loss is no longer finite.
    """
    if len(features) == 0:
        raise FlSimError("There are no held-out images to train the head on; raise [data] images.")
    sizes = [features.shape[1], *([hidden] if hidden else []), task.outputs]
    layers = initial_head(sizes, settings.init_std, stream, bias)
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    optimizer = torch.optim.SGD(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    with piece(progress, "head", settings.epochs):
        for epoch in range(settings.epochs):
            optimizer.zero_grad()
            loss = task.loss(head_logits(layers, features), labels)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FlSimError(
                    f"The head's loss became {losses[-1]} at step {epoch + 1} of "
                    f"{settings.epochs}; lower learning_rate ({settings.learning_rate:g})."
                )
            loss.backward()
            optimizer.step()
            progress.step()
    trained = tuple(
        Linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        for layer in layers
    )
    if not all(layer.weight.isfinite().all() for layer in trained):
        raise FlSimError(
            f"The head's weights are no numbers any more; lower learning_rate "
            f"({settings.learning_rate:g})."
        )
    return trained, losses


def initial_head(sizes: list[int], std: float, stream: Stream, bias: bool) -> tuple[Linear, ...]:
    """Return a head's initial layers, which record gradients; biases are 0.

    Args:
        sizes: inputs of each layer, and outputs of the last.
        std: deviation of the weights.
        stream: where they are drawn from.
        bias: whether layers have biases.
    """
    generator = stream.torch_generator("initial head")
    layers = []
    for inputs, outputs in pairwise(sizes):
        weight = torch.randn(outputs, inputs, generator=generator) * std
        start = torch.zeros(outputs, requires_grad=True) if bias else None
        layers.append(Linear(weight.requires_grad_(True), start))
    return tuple(layers)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextmanager
def _watching(network: nn.Module, note: Any) -> Iterator[None]:
    """Call ``note(name, inputs)`` for each linear layer that the network calls in the block."""
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
