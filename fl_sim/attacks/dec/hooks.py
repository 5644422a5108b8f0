"""What DEC does while the network trains: train a codec along with it, or keep weights fixed."""

import math

import torch
from torch import nn

from fl_sim.carriers.base import State
from fl_sim.codec import LearnedCodec
from fl_sim.training import LocalTraining, StepHooks, batch_indices


class CodecHooks(StepHooks):
    """Internal training: after each step on the task, steps on the codec that shares its encoder.

    The codec's rate follows half a cosine over the whole run, so that it has settled when the
    codes are made.

    Args:
        run: the training.
        codec: the codec inside ``run.model``.
        steps: on the codec after each step on the task.
    """

    def __init__(self, run: LocalTraining, codec: LearnedCodec, steps: int) -> None:  # type: ignore[type-arg]
        self._run = run
        self._steps = steps
        self._trainer = codec.trainer(run.stream.at("codec"))
        generator = run.stream.numpy("codec batches")
        self._batches = batch_indices(len(run.data), run.settings.batch_size, generator)
        self._device = next(run.model.parameters()).device

    def before_step(self, done: float, optimizer: torch.optim.Optimizer) -> None:
        """Set the codec's rate for where the whole run stands."""
        window = self._run.window
        position = window.start + done * (window.end - window.start)
        self._trainer.set_rate(max(0.01, (1 + math.cos(math.pi * position)) / 2))

    def after_step(self) -> dict[str, float]:
        """Train the codec on the hospital's images."""
        losses: dict[str, float] = {}
        for _ in range(self._steps):
            images, _ = self._run.data.batch(next(self._batches))
            losses = self._trainer.step(images.to(self._device))
        return losses


class FrozenHooks(StepHooks):
    """Keep chosen elements of the parameters at their values, whatever the optimizer does.

    Args:
        model: the network.
        values: a state dictionary with the values to keep.
        places: which elements, boolean masks by parameter name.
    """

    def __init__(self, model: nn.Module, values: State, places: dict[str, torch.Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self._kept = []
        for name, mask in places.items():
            parameter = parameters[name]
            mask = mask.to(parameter.device)
            kept = values[name].to(parameter.device, parameter.dtype)[mask]
            self._kept.append((parameter, mask, kept))

    def after_step(self) -> dict[str, float]:
        """Undo what the step did to the kept elements."""
        with torch.no_grad():
            for parameter, mask, kept in self._kept:
                parameter[mask] = kept
        return {}
