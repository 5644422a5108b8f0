"""Memory that survives: its gradient is taken where a defence would have moved the weights.

The receiver reads a model that was changed after training. An attacker who knows how can train for
that: the memory's loss is evaluated at weights that were disturbed, and its gradient there is
applied to the undisturbed ones (for simulated fine-tuning the first-order meta-gradient of Finn et
al. 2017, "Model-Agnostic Meta-Learning", section 5.2; for noise the usual injected weight noise).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import nn

from fl_sim.defenses.lwlrd import decayed_rates
from fl_sim.models.graph import layers
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, StepSettings, batch_indices, make_optimizer, task_step


class SurvivalSettings(Settings):
    """What a memory is trained to survive.

    Args:
        share: of the memory steps that are taken at disturbed weights.
        noise: deviation of Gaussian noise, relative to each tensor's own deviation.
        steps: simulated steps of fine-tuning on the task.
        high: their learning rate at the first layer.
        low: their learning rate at the last layer; rates decay geometrically over blocks.
        batch_size: images a simulated step.
    """

    share: float = Field(0.5, gt=0, le=1)
    noise: float = Field(0.0, ge=0)
    steps: int = Field(0, ge=0)
    high: float = Field(3e-2, gt=0)
    low: float = Field(3e-4, gt=0)
    batch_size: int = Field(16, ge=2)


class Disturbance:
    """Moves a network's weights as a defence would, and puts them back.

    Args:
        settings: how far.
        run: the attacked training; its images serve for the simulated fine-tuning.
    """

    def __init__(self, settings: SurvivalSettings, run: LocalTraining) -> None:
        self._settings = settings
        self._run = run
        self._coin = run.stream.numpy("disturbed steps")
        self._noise = run.stream.torch_generator("weight noise")
        generator = run.stream.numpy("simulated batches")
        self._batches = batch_indices(len(run.data), settings.batch_size, generator)
        ordered = [x for x in layers(run.model, run.spec.input_shape, "block") if x.used]
        rates = decayed_rates(settings.high, settings.low, len(ordered))
        parameters = dict(run.model.named_parameters())
        self._groups = [
            {"params": [parameters[name] for name in layer.parameters], "lr": rate}
            for layer, rate in zip(ordered, rates, strict=True)
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Disturb within the block, on a share of the calls; gradients stay, values return."""
        active = self._settings.noise > 0 or self._settings.steps > 0
        if not active or self._coin.random() >= self._settings.share:
            yield
            return
        model = self._run.model
        before = {n: v.detach().clone() for n, v in model.state_dict().items()}
        self._fine_tune(model)
        self._add_noise(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in model.state_dict().items():
                    value.copy_(before[name])

    def _fine_tune(self, model: nn.Module) -> None:
        if self._settings.steps == 0:
            return
        settings = StepSettings(optimizer="sgd", batch_size=self._settings.batch_size)
        optimizer = make_optimizer(self._groups, settings, self._settings.high)
        for _ in range(self._settings.steps):
            task_step(model, self._run.data, next(self._batches), self._run.task, optimizer)
        optimizer.zero_grad(set_to_none=True)

    def _add_noise(self, model: nn.Module) -> None:
        if self._settings.noise == 0:
            return
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=self._noise).to(parameter.device)
                parameter.add_(noise * (self._settings.noise * parameter.std(correction=0)))
