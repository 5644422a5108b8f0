"""Training a learned codec outside any other network: one loop for all of them."""

import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field

from fl_sim.codec import CodecTrainer, FitReport, LearnedCodec
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.settings import Settings
from fl_sim.training import batch_indices


class LearnedSettings(Settings):
    """How a learned codec is trained.

    Args:
        lmbda: what a squared error counts against a bit: the loss is ``lmbda * 255^2 * MSE +
            bits a pixel`` (CompressAI's ``RateDistortionLoss``).
        learning_rate: of Adam at the start; it falls to zero along half a cosine.
        batch_size: images a step.
        max_steps: steps at most.
        validate_every: steps between two looks at the validation images.
        patience: validations without a better loss after which training stops.
        crop: side of random square crops, for large images; by default whole images.
        flip: whether images are flipped left to right at random.
    """

    lmbda: float = Field(0.02, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(32, ge=1)
    max_steps: int = Field(5000, ge=1)
    validate_every: int = Field(250, ge=1)
    patience: int = Field(8, ge=1)
    crop: int | None = Field(None, ge=16)
    flip: bool = False


def fit(
    codec: LearnedCodec[Any],
    settings: LearnedSettings,
    images: torch.Tensor,
    validation: torch.Tensor,
    stream: Stream,
    progress: Progress = SILENT,
) -> FitReport:
    """Train a codec's network in place, keep its best weights, and freeze it.

    Args:
        codec: what is trained; its own trainer takes the steps.
        settings: the codec's.
        images: float32 ``[n, channels, height, width]`` in [0, 1].
        validation: like ``images``; decides which weights are best and when to stop.
        stream: where randomness is derived from.
        progress: told bits a pixel and PSNR at each validation.

    Raises:
        FlSimError: if there are no images, a crop does not fit, or training diverges.
    """
    if not len(images) or not len(validation):
        raise FlSimError("A codec cannot be trained without images, some of them for validation.")
    began, report, best = time.perf_counter(), FitReport(stopped="limit"), _Best(codec)
    batches, trainer = _batches(settings, images, stream), codec.trainer(stream.at("trainer"))
    with piece(progress, "codec", settings.max_steps):
        for step in range(settings.max_steps):
            trainer.set_rate(0.5 * (1 + math.cos(math.pi * step / settings.max_steps)))
            losses = trainer.step(next(batches))
            _refuse_divergence(losses, step, settings)
            report.steps, note = step + 1, ""
            if report.steps % settings.validate_every == 0 or report.steps == settings.max_steps:
                note = best.look(trainer, validation, report)
            progress.step(note)
            if best.misses >= settings.patience:
                report.stopped = "plateau"
                break
    best.restore()
    codec.freeze()
    report.seconds = time.perf_counter() - began
    return report


class _Best:
    """The best weights so far, by the validation loss."""

    def __init__(self, codec: LearnedCodec[Any]) -> None:
        self.misses = 0
        self._network = codec.network
        self._loss = math.inf
        self._state: dict[str, torch.Tensor] = {}

    def look(self, trainer: CodecTrainer, validation: torch.Tensor, report: FitReport) -> str:
        """Validate, note the curves, keep the weights if better; return how it stands."""
        values = trainer.evaluate(validation)
        _refuse_non_finite(values, report.steps)
        for name, value in {"step": float(report.steps), **values}.items():
            report.curves.setdefault(name, []).append(value)
        self.misses += 1
        if values["loss"] < self._loss:
            self.misses, self._loss = 0, values["loss"]
            self._state = copy.deepcopy(self._network.state_dict())
        return f"{values['bpp']:.3f} bpp {values['psnr']:.1f} dB"

    def restore(self) -> None:
        """Give the network its best weights back."""
        self._network.load_state_dict(self._state)


def _batches(
    settings: LearnedSettings, images: torch.Tensor, stream: Stream
) -> Iterator[torch.Tensor]:
    crop = settings.crop
    if crop is not None and crop > min(images.shape[-2:]):
        raise FlSimError(
            f"Crops of {crop} pixels do not fit into images of {images.shape[-2]} x "
            f"{images.shape[-1]}; lower crop, or leave it out for whole images."
        )
    generator = stream.numpy("codec batches")
    for indices in batch_indices(len(images), settings.batch_size, generator):
        batch = images[torch.from_numpy(indices)]
        if crop is not None:
            batch = _cropped(batch, crop, generator)
        if settings.flip:
            flipped = torch.from_numpy(generator.random(len(batch)) < 0.5)
            batch[flipped] = batch[flipped].flip(-1)
        yield batch


def _cropped(batch: torch.Tensor, side: int, generator: np.random.Generator) -> torch.Tensor:
    height, width = batch.shape[-2:]
    tops = generator.integers(0, height - side + 1, len(batch)).tolist()
    lefts = generator.integers(0, width - side + 1, len(batch)).tolist()
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, top, left in zip(batch, tops, lefts, strict=True)
        ]
    )


def _refuse_divergence(losses: dict[str, float], step: int, settings: LearnedSettings) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FlSimError(
                f"The codec's {name} loss became {value} at step {step + 1} of "
                f"{settings.max_steps}; lower its learning_rate ({settings.learning_rate:g})."
            )


def _refuse_non_finite(values: dict[str, float], step: int) -> None:
    if not math.isfinite(values["loss"]):
        raise FlSimError(
            f"The codec's loss on the validation images became {values['loss']} after step "
            f"{step}; lower its learning_rate."
        )
