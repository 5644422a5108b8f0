"""Fine-pruning: the channels that clean images use least are removed, then the rest fine-tuned.

Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID 2018. Channels of the last convolution are pruned in the order of their mean
activation on clean images, as long as the accuracy on these stays.
"""

import time
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import (
    FineTuningHooks,
    FineTuningSettings,
    fine_tune,
    relative_change,
    uniform_rates,
)
from fl_sim.defenses.loops.fisher import evaluating
from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.models.graph import NORMALIZATIONS, TracedModel, trace
from fl_sim.progress import piece
from fl_sim.training import normalized, predict


class FinePruningSettings(FineTuningSettings):
    """Settings of fine-pruning.

    Args:
        share: of the layer's channels that are pruned; where not given, as many as ``tolerance``
            allows, as in the paper.
        tolerance: how far the accuracy on the held-out images may fall by pruning, from 0 to 1.
        steps: the layer is pruned in this many equal parts, with a look at the accuracy after each.
        layer: name of the convolution or linear layer that is pruned; where not given, the last
            convolution, or in a network without convolutions the last hidden linear layer.
        learning_rate: of the fine-tuning afterwards.
    """

    share: float | None = Field(None, ge=0, lt=1)
    tolerance: float = Field(0.04, ge=0, le=1)
    steps: int = Field(16, ge=1)
    layer: str | None = None
    learning_rate: float = Field(1e-3, gt=0)


@dataclass(frozen=True)
class PrunableLayer:
    """A layer whose output channels can be pruned, with what scales and shifts them.

    Args:
        weights: the convolution or linear layer.
        normalization: the batch normalisation that follows it, if one does.
    """

    weights: nn.Module
    normalization: nn.Module | None

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that have a row for each output channel."""
        own = list(self.weights.parameters(recurse=False))
        turned = _transposed(self.weights)
        rows = [p.transpose(0, 1) if turned and p.dim() > 1 else p for p in own]
        if self.normalization is not None:
            rows += self.normalization.parameters(recurse=False)
        return [tensor.detach() for tensor in rows]

    def clear(self, channels: torch.Tensor) -> None:
        """Set channels, given by number, to zero for every image."""
        for tensor in self.tensors():
            tensor[channels] = 0


@DEFENSES.register(
    "fine_pruning", "least-used channels pruned, the rest fine-tuned (Liu et al. 2018)"
)
class FinePruning(Defense[FinePruningSettings]):
    """Prune the least-activated channels of the last convolution, and fine-tune the others."""

    Settings = FinePruningSettings

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        if len(release.held_out) == 0:
            raise FlSimError("The defence has no held-out images; raise [data] images.")
        began = time.perf_counter()
        before = {name: p.detach().clone() for name, p in release.model.named_parameters()}
        layer = prunable_layer(release, self.settings.layer)
        pruned = self._prune(release, layer)
        spent = time.perf_counter() - began
        rates = uniform_rates(release, self.settings.learning_rate)
        report = fine_tune(release, rates, self.settings, _Pruned(layer, pruned))
        blocks = [rate.layer for rate in rates]
        report.relative_change = relative_change(release.model, before, blocks)
        report.seconds += spent
        return report

    def _prune(self, release: Release, layer: PrunableLayer) -> torch.Tensor:
        """Prune the layer in place; return the numbers of its pruned channels."""
        order = mean_activations(release, layer).argsort(stable=True)
        if self.settings.share is not None:
            chosen = order[: int(self.settings.share * len(order))]
            layer.clear(chosen)
            return chosen
        kept = [tensor.clone() for tensor in layer.tensors()]
        lowest = accuracy(release.model, release.held_out, release.task) - self.settings.tolerance
        chosen = order[:0]
        with piece(release.progress, "pruning", self.settings.steps - 1):
            for step in range(1, self.settings.steps):
                more = order[: len(order) * step // self.settings.steps]
                layer.clear(more)
                if accuracy(release.model, release.held_out, release.task) < lowest:
                    break
                chosen = more
                release.progress.step(f"{len(chosen)} of {len(order)} channels")
        for tensor, values in zip(layer.tensors(), kept, strict=True):
            tensor.copy_(values)
        layer.clear(chosen)
        return chosen


class _Pruned(FineTuningHooks):
    def __init__(self, layer: PrunableLayer, channels: torch.Tensor) -> None:
        self._layer, self._channels = layer, channels

    def after_step(self) -> None:
        """Keep pruned channels at zero."""
        self._layer.clear(self._channels)


def prunable_layer(release: Release, name: str | None = None) -> PrunableLayer:
    """Return the layer that is pruned; see :class:`FinePruningSettings`.

    Raises:
        FlSimError: if the network has no hidden layer, or none of that name.
    """
    traced = trace(release.model, release.spec.input_shape)
    nodes = [
        node
        for node in traced.nodes
        if node.op == "call_module" and isinstance(traced.module(node), _WEIGHT_LAYERS)
    ]
    hidden = {str(node.target): node for node in nodes[:-1]}  # the last one gives the answers
    if not hidden:
        raise FlSimError("The network has no hidden layer to prune; choose another defence.")
    # A convolution that comes first of all cuts out a transformer's patches.
    convolutions = [
        target
        for target, node in hidden.items()
        if not isinstance(traced.module(node), nn.Linear) and node is not nodes[0]
    ]
    chosen = name or (convolutions or list(hidden))[-1]
    if chosen not in hidden:
        raise FlSimError(
            f"[defense]: the network has no hidden layer '{chosen}'.{did_you_mean(chosen, hidden)}"
        )
    return PrunableLayer(traced.module(hidden[chosen]), _normalization(traced, hidden[chosen]))


_WEIGHT_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def _transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def _normalization(traced: TracedModel, node: torch.fx.Node) -> nn.Module | None:
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_module":
        module = traced.module(users[0])
        if isinstance(module, NORMALIZATIONS) and not isinstance(module, nn.LayerNorm):
            return module
    return None


def mean_activations(release: Release, layer: PrunableLayer, batch_size: int = 256) -> torch.Tensor:
    """Return each channel's mean activation (after a ReLU) over all held-out images and places.

    Returns:
        float64 ``[channels]``, on the CPU.
    """
    is_linear = isinstance(layer.weights, nn.Linear)
    total = torch.zeros(())

    def add(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        active = output.detach().relu().double()
        active = active.movedim(-1 if is_linear else 1, 0).flatten(1)
        total = total + active.sum(1).cpu() / (active.shape[1] / count)

    handle = (layer.normalization or layer.weights).register_forward_hook(add)
    model, held_out = release.model, release.held_out
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.no_grad():
            for first in range(0, len(held_out), batch_size):
                pixels, _ = held_out.batch(slice(first, first + batch_size))
                count = len(pixels)
                model(normalized(pixels.to(device)))
    finally:
        handle.remove()
    return total / len(held_out)


def accuracy(model: nn.Module, data: Split, task: Task) -> float:
    """Return the share of right answers: of images, of labels, or of pixels."""
    answers = predict(model, data, task)
    truth = torch.from_numpy(data.labels[:].astype("int64"))
    if task.multi_label:
        answers = (answers > 0.5).long()
    elif not task.is_segmentation:
        answers = answers.argmax(dim=1)
    return float((answers.long() == truth.view(answers.shape)).double().mean())
