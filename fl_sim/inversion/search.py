"""Class representatives by gradient: images that a network gives to a class, from its file alone.

The pixels are optimised (Fredrikson, Jha and Ristenpart, CCS 2015), with a prior that keeps them
images. Where the network has batch normalisation, its running statistics are those of the training
images' features, and the search matches them: DeepInversion (Yin et al., CVPR 2020, equations 2 to
4),

    cross entropy + tv * R_TV(x) + l2 * R_2(x)
      + statistics * sum over layers of |mean(x) - running mean| + |variance(x) - running variance|

with Euclidean norms over channels. Where it has none, total variation and the norm have to do.
Images are shifted and turned over at random in each step, as there.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import nn

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.settings import Settings
from fl_sim.training import normalized

MOST_IMAGES = 4096
STATISTICS, VARIATION = "batch-norm statistics", "total variation"
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class InversionSettings(Settings):
    """How class representatives are looked for.

    Args:
        images: of each class.
        steps: of the search.
        learning_rate: of Adam, on the logits of pixels.
        variation: weight of the total variation, the mean difference of neighbouring pixels.
        norm: weight of the mean square of pixels around grey.
        statistics: weight of the batch-norm statistics; 0 leaves them out.
        shift: pixels that an image is shifted by at most, at random, in each step.
    """

    images: int = Field(4, ge=1, le=MOST_IMAGES)
    steps: int = Field(400, ge=1, le=100_000)
    learning_rate: float = Field(0.1, gt=0)
    variation: float = Field(0.3, ge=0)
    norm: float = Field(0.01, ge=0)
    statistics: float = Field(0.1, ge=0)
    shift: int = Field(2, ge=0)


@dataclass(frozen=True)
class Inversion:
    """Class representatives of a network.

    Args:
        images: ``[classes * n, channels, height, width]`` in [0, 1], class by class.
        labels: ``[classes * n]``, the class each was looked for.
        prior: :data:`STATISTICS` or :data:`VARIATION`.
        sure: ``[classes * n]``, the probability that the network gives to that class, at the end.
        losses: of the whole objective, a step each.
        seconds: wall time.
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    prior: str
    sure: torch.Tensor = field(repr=False)
    losses: list[float] = field(repr=False)
    seconds: float


def invert(
    model: nn.Module,
    spec: ModelSpec,
    task: Task,
    settings: InversionSettings,
    stream: Stream,
    progress: Progress = SILENT,
) -> Inversion:
    """Look for images that a network gives to each of its classes.

    Args:
        model: called with pixels in [-1, 1]; left as it was.
        spec: its images.
        task: what it is for; of several labels an image, each is looked for alone.
        settings: how is searched.
        stream: where randomness is derived from.
        progress: where to report.

    Raises:
        FlSimError: if the network answers each pixel, is asked for too many images, or no gradient
            reaches them.
    """
    if task.is_segmentation:
        raise FlSimError(
            "A network that answers each pixel has no image of a class; inversion is for "
            "classifiers."
        )
    count = settings.images * spec.classes
    if count > MOST_IMAGES:
        raise FlSimError(
            f"{settings.images} images of each of {spec.classes} classes are {count}; ask for "
            f"{MOST_IMAGES} together at most."
        )
    began = time.perf_counter()
    device = next(model.parameters()).device
    labels = torch.arange(spec.classes).repeat_interleave(settings.images)
    shape = (count, *spec.input_shape)
    start = torch.randn(shape, generator=stream.torch_generator("inversion start"))
    pixels = (0.5 * start).to(device).requires_grad_(True)
    with _asked(model), _seen_by_norms(model) as seen:
        losses = _search(model, pixels, labels.to(device), task, settings, stream, progress, seen)
        with torch.no_grad():
            images = pixels.sigmoid()
            scores = task.scores(model(normalized(images)))
    sure = scores.gather(1, labels.to(device)[:, None])[:, 0]
    uses = bool(seen.norms) and settings.statistics > 0
    return Inversion(
        images.cpu(),
        labels,
        STATISTICS if uses else VARIATION,
        sure.cpu(),
        losses,
        time.perf_counter() - began,
    )


def _search(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    settings: InversionSettings,
    stream: Stream,
    progress: Progress,
    seen: "_Seen",
) -> list[float]:
    optimizer = torch.optim.Adam([pixels], settings.learning_rate)
    generator, losses = stream.numpy("inversion views"), []
    target = nn.functional.one_hot(labels, len(task.label_names)) if task.multi_label else labels
    with piece(progress, "inversion", settings.steps):
        for _ in range(settings.steps):
            images = pixels.sigmoid()
            shifts = generator.integers(-settings.shift, settings.shift + 1, 2)
            view = images.roll((int(shifts[0]), int(shifts[1])), dims=(2, 3))
            if generator.random() < 0.5:
                view = view.flip(3)
            seen.begin()
            loss = task.loss(model(normalized(view)), target)
            loss = loss + settings.variation * total_variation(images)
            loss = loss + settings.norm * (images - 0.5).square().mean()
            if seen.norms and settings.statistics > 0:
                loss = loss + settings.statistics * seen.distance()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise FlSimError(
                    "The network answers numbers that are not finite, or the search's "
                    "learning_rate is too high; nothing can be read from it so."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.step(f"loss {losses[-1]:.3f}")
    return losses


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels, down and across.

    Args:
        images: ``[n, channels, height, width]``.
    """
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    return down + across


class _Seen:
    """What batch-norm layers are given, against what they were given in training."""

    def __init__(self) -> None:
        self.norms: list[nn.BatchNorm1d | nn.BatchNorm2d] = []
        self._parts: list[torch.Tensor] = []

    def begin(self) -> None:
        """Forget what was seen before."""
        self._parts = []

    def note(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, given: torch.Tensor) -> None:
        """Note how far one layer's input is from its running statistics."""
        assert norm.running_mean is not None and norm.running_var is not None
        rest = [dim for dim in range(given.ndim) if dim != 1]
        mean, variance = given.mean(dim=rest), given.var(dim=rest, unbiased=False)
        self._parts.append(torch.linalg.vector_norm(mean - norm.running_mean))
        self._parts.append(torch.linalg.vector_norm(variance - norm.running_var))

    def distance(self) -> torch.Tensor:
        """Return the sum over layers."""
        return torch.stack(self._parts).sum()


@contextmanager
def _seen_by_norms(model: nn.Module) -> Iterator[_Seen]:
    """Look at what batch-norm layers with running statistics are given within the block."""
    seen, hooks = _Seen(), []
    for module in model.modules():
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
            seen.norms.append(module)
            hooks.append(
                module.register_forward_pre_hook(lambda norm, given: seen.note(norm, given[0]))
            )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients of its own, and back."""
    was_training = model.training
    own = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in own:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for parameter, needed in own:
            parameter.requires_grad_(needed)
