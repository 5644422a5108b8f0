"""Differentially private training: DP-SGD, with the accounting of Opacus.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016: each image's gradient is clipped,
Gaussian noise is added to their sum, and an accountant (Rényi differential privacy: Mironov 2017;
subsampled: Mironov, Talwar and Zhang 2019) says what a training run gives away of any one image.

The unit is an image: a patient with several images gives away more. Held-out images, which a
defence trains on, are not covered. The promise is that of the code that trains. Where that code is
an attacker's, what he adds to the gradients is neither clipped nor noised, and the promise holds
for the task's part alone.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelSpec
from fl_sim.settings import Settings


class DpSettings(Settings):
    """Settings of DP-SGD; either the noise is given, or the epsilon that it is chosen for.

    Args:
        noise_multiplier: deviation of the noise on the sum of gradients, in units of
            ``max_grad_norm``.
        target_epsilon: what the whole training, over all rounds, may spend at ``delta``.
        max_grad_norm: L2 norm that an image's gradient is clipped to.
        delta: probability with which the promise may fail; less than one over the images.
    """

    noise_multiplier: float | None = Field(None, gt=0)
    target_epsilon: float | None = Field(None, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("give either noise_multiplier or target_epsilon")
        return self


def check_private(model: nn.Module, spec: ModelSpec) -> None:
    """Refuse a network whose answer to an image depends on the others of its batch.

    Raises:
        FlSimError: if it has batch normalisation.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    hint = "choose another model"
    if "norm" in MODELS.get(spec.name).settings.model_fields:
        hint = 'set [model] norm = "group"'
    raise FlSimError(
        f"[training] dp clips the gradient of each image, and the model '{spec.name}' has batch "
        f"normalisation, which mixes the images of a batch; {hint}."
    )


def poisson_batches(
    images: int, rate: float, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield batches without end in which each image is with a probability; they may be empty."""
    while True:
        yield np.flatnonzero(generator.random(images) < rate)


class PrivateGradients:
    """Clipped and noised gradients, as an accountant assumes them.

    One backward pass an image: ``vmap`` of torch.func takes 0.6 to 1.7 times as long (8 images at
    once, as many gradients in memory) and fails on recurrent networks and on any that ask what a
    tensor holds or write into one; Opacus' hooks fail on ReLUs in place and on Swin transformers.

    Args:
        parameters: that are trained.
        settings: of DP-SGD.
        images: local images.
        batch_size: expected number of images a step.
        steps: of the whole training, over all rounds.
        generator: of the noise, on the CPU.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        settings: DpSettings,
        images: int,
        batch_size: int,
        steps: int,
        generator: torch.Generator,
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._settings = settings
        self._generator = generator
        self.rate = min(1.0, batch_size / images)
        self._expected = self.rate * images
        self.noise_multiplier = settings.noise_multiplier or noise_for(
            float(settings.target_epsilon or 0), settings.delta, self.rate, steps
        )

    def fill(self, indices: Iterable[int], loss_of: Callable[[int], torch.Tensor]) -> float:
        """Set the parameters' gradients from some images.

        Args:
            indices: of the images.
            loss_of: the loss of one image by its index.

        Returns:
            The images' mean loss; 0 where there are none.
        """
        losses = []
        limit = self._settings.max_grad_norm
        total: list[torch.Tensor | None] = [None] * len(self._parameters)
        for index in indices:
            loss = loss_of(int(index))
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            own = [gradient for gradient in gradients if gradient is not None]
            norm = float(torch.stack(torch._foreach_norm(own)).norm())
            scale = min(1.0, limit / norm) if norm > 0 else 1.0
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    part = gradient * scale
                    known = total[place]
                    total[place] = part if known is None else known.add_(part)
            losses.append(float(loss.detach()))
        deviation = self.noise_multiplier * limit
        for parameter, summed in zip(self._parameters, total, strict=True):
            noise = torch.randn(parameter.shape, generator=self._generator) * deviation
            noise = noise.to(parameter.device, parameter.dtype)
            parameter.grad = (noise if summed is None else summed + noise) / self._expected
        return sum(losses) / len(losses) if losses else 0.0

    def epsilon(self, steps: int) -> float:
        """Return what ``steps`` steps have spent, at the settings' delta."""
        return spent_epsilon(self.noise_multiplier, self.rate, steps, self._settings.delta)


def spent_epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Return the epsilon of DP-SGD, an upper bound.

    Args:
        noise_multiplier: see :class:`DpSettings`.
        rate: probability of an image to be in a batch.
        steps: taken.
        delta: see :class:`DpSettings`.
    """
    # Takes seconds to import, and only private training needs it.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, rate, steps)]
    with _any_order():
        return float(accountant.get_epsilon(delta))


def gaussian_epsilon(rho: float, delta: float) -> float:
    """Return the epsilon of Gaussian noise on all data at once, an upper bound.

    Args:
        rho: of zero-concentrated differential privacy (Bun and Steinke 2016, arXiv 1605.02065), 0
            or more, perhaps infinite: ``s ** 2 / (2 * deviation ** 2)`` summed over answers of
            L2 sensitivity ``s``.
        delta: probability with which the promise may fail.
    """
    if rho in (0, math.inf):
        return rho
    return spent_epsilon(1 / math.sqrt(2 * rho), 1.0, 1, delta)


@lru_cache(maxsize=64)
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the least noise multiplier with which ``steps`` steps spend at most ``epsilon``.

    Raises:
        FlSimError: if no noise is enough.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _any_order():
            noise = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
            )
    except ValueError as error:
        raise FlSimError(
            f"[training] dp: no noise reaches target_epsilon = {epsilon:g} in {steps} steps "
            f"({error}); raise it, or train for less."
        ) from None
    return float(noise)


@contextmanager
def _any_order() -> Iterator[None]:
    """Do not warn that another Rényi order might give a smaller bound; this one is a bound too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is")
        yield
