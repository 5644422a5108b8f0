"""The few-shot reconstruction attack: from a released linear head to the images behind it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.privacy import DpSettings
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.reconstruction.changed import Averaged, Distilled, distillation
from fl_sim.reconstruction.convolutions import ConvolutionSettings, fit_convolutions
from fl_sim.reconstruction.decisions import head_from_decisions
from fl_sim.reconstruction.evidence import Evidence, gaussian_heads, weigh
from fl_sim.reconstruction.population import Population
from fl_sim.reconstruction.private import private_of, train_private_head
from fl_sim.reconstruction.ridge import Gauge, fit_ridge
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import train_shadows, with_ones
from fl_sim.reconstruction.two_layers import tangent_of, train_two_layers
from fl_sim.sealing.heads import Activation, HeadSettings, Linear, head_logits, train_head
from fl_sim.settings import Settings

MOST_SHADOWS = 10_000_000
MOST_PUBLIC = 100_000


class FewShotSettings(Settings):
    """What an attacker does to reconstruct the images that a head was trained on.

    Args:
        images_per_class: in the victim's training set, which is taken to be balanced.
        shadows: heads that the attacker trains on his own images.
        validation: share of them on which the reconstructor is chosen, of 10,000 at most.
        sees: ``"weights"`` (white box) or ``"decisions"`` (black box: the class of each image that
            he asks about, from which he learns weights by logistic regression).
        questions: images of his own that he asks about at most, where he sees decisions.
        reconstructor: ``"ridge"``, a linear map in closed form; or ``"convolutions"``, a network
            of transposed convolutions, which takes a hundred times as long a shadow head.
        convolutions: how that is trained.
        head: how the victim trains, which the attacker knows.
        hidden: units of a head of two layers; 0 for one layer.
        activation: of these units.
        dp: noise of the victim's training, where it is differentially private.
        distilled_on: public images that the victim's head has answered for a student, which leaves
            in its place; 0 for none.
        averaged: hospitals whose heads are averaged before anybody sees them.
    """

    images_per_class: int = Field(1, ge=1, le=1000)
    shadows: int = Field(3000, ge=2, le=MOST_SHADOWS)
    validation: float = Field(0.1, gt=0, lt=1)
    sees: Literal["weights", "decisions"] = "weights"
    questions: int = Field(2000, ge=2)
    reconstructor: Literal["ridge", "convolutions"] = "ridge"
    convolutions: ConvolutionSettings = ConvolutionSettings()
    head: HeadSettings = HeadSettings()
    hidden: int = Field(0, ge=0, le=4096)
    activation: Activation = "square"
    dp: DpSettings | None = None
    distilled_on: int = Field(0, ge=0, le=MOST_PUBLIC)
    averaged: int = Field(1, ge=1, le=1000)

    @model_validator(mode="after")
    def _one_layer_where_it_must_be(self) -> Self:
        if self.hidden and (self.dp is not None or self.distilled_on):
            raise ValueError("dp and distilled_on are for heads of one layer; leave out hidden")
        if self.shadows < 2 * self.averaged:
            raise ValueError("shadows are too few for two averages; raise shadows")
        return self


class Reconstructor(Protocol):
    """What has learnt the way from heads to images."""

    @property
    def gauge(self) -> Gauge:
        """What heads are known up to."""

    @property
    def mean(self) -> torch.Tensor:
        """Mean shadow head, ``[classes, inputs]``."""

    @property
    def error(self) -> float:
        """Its mean square error on heads that it was not fitted to."""

    @property
    def class_mean_error(self) -> float:
        """That of each class's mean image."""

    def reconstruct(self, weights: torch.Tensor) -> torch.Tensor:
        """Return ``[heads, classes, channels, height, width]`` for heads in a common gauge."""


@dataclass(frozen=True)
class Attacker:
    """Who has learnt the way from heads to images.

    Args:
        settings: how he has.
        shadows: his heads, as they would have left.
        reconstructor: what he has fitted to them.
        questions: ``[questions, D]``, features of his own images, which he asks about.
        point: ``[D]``, where heads of two layers are read as linear ones.
    """

    settings: FewShotSettings
    shadows: Population
    reconstructor: Reconstructor
    questions: torch.Tensor
    point: torch.Tensor

    def reconstruct(self, *head: Linear) -> torch.Tensor:
        """Return one image of each class, ``[classes, channels, height, width]`` in [0, 1].

        Args:
            head: layers of the released one; for an attacker who sees decisions what answers him,
                and no more is used of it.
        """
        return self.reconstructor.reconstruct(self._seen(head)[None])[0]

    def without_head(self) -> torch.Tensor:
        """Return what is left to him where the head is sealed: the images of the mean shadow head.

        Returns:
            ``[classes, channels, height, width]``, near each class's mean image.
        """
        weights = self.shadows.weights(0, min(len(self.shadows), 4096)).mean(dim=0)
        return self.reconstructor.reconstruct(weights[None])[0]

    def null(self, draws: int, stream: Stream) -> torch.Tensor:
        """Reconstruct from heads that know no victim.

        Returns:
            ``[draws, classes, channels, height, width]``.
        """
        heads = gaussian_heads(self.shadows, draws, stream, self.reconstructor.gauge)
        return self.reconstructor.reconstruct(heads)

    def decoys(self, count: int) -> torch.Tensor:
        """Reconstruct from the last shadow heads, which are no victim's.

        They are seen as a victim's would be; the reconstructor was chosen on them, not fitted.

        Returns:
            ``[count, classes, channels, height, width]``, perhaps fewer.
        """
        heads = self.shadows.weights(max(0, len(self.shadows) - count), len(self.shadows))
        if self.settings.sees == "weights":
            return self.reconstructor.reconstruct(heads)
        return torch.stack([self.reconstruct(Linear(h[:, :-1], h[:, -1])) for h in heads])

    def _seen(self, head: tuple[Linear, ...]) -> torch.Tensor:
        if self.settings.sees == "decisions":
            answers = head_logits(head, self.questions.float(), self.settings.activation)
            return head_from_decisions(self.questions, answers.argmax(dim=1), answers.shape[1])
        if len(head) == 2:
            head = (tangent_of(head, self.settings.activation, self.point),)
        return torch.from_numpy(head[0].matrix()).float()


def learn(
    features: torch.Tensor,
    pixels: torch.Tensor,
    labels: NDArray[np.int64],
    classes: int,
    settings: FewShotSettings,
    stream: Stream,
    *,
    bias: bool = True,
    public: torch.Tensor | None = None,
    kept: Path | None = None,
    progress: Progress = SILENT,
) -> Attacker:
    """Train shadow heads on the attacker's own images, and a reconstructor on the heads.

    Args:
        features: ``[images, D]`` that the frozen base gives for them; see
            :func:`fl_sim.sealing.heads.features_of`.
        pixels: ``[images, channels, height, width]`` in [0, 1].
        labels: ``[images]``, one class each.
        classes: rows of the head, at least 2.
        settings: how.
        stream: where sets and initial weights are drawn from.
        bias: whether the head has biases.
        public: ``[images, D]``, features of the images that a student is distilled on.
        kept: folder to keep shadow heads in; ``None`` for memory.
        progress: where to report.

    Raises:
        FlSimError: if there are too few images, or heads diverge.
    """
    if not len(features) == len(pixels) == len(labels) or np.ndim(labels) != 1:
        raise FlSimError(
            f"Few-shot reconstruction needs features, an image and one class of each image, not "
            f"{len(features)} features, {len(pixels)} images and labels {list(np.shape(labels))}."
        )
    shadows = _shadows(features, labels, classes, settings, stream, bias, public, kept, progress)
    reconstructor: Reconstructor
    if settings.reconstructor == "ridge":
        reconstructor = fit_ridge(
            shadows,
            pixels,
            gauge=settings.sees,
            validation=settings.validation,
            progress=progress,
        )
    else:
        reconstructor = fit_convolutions(
            shadows,
            pixels,
            settings.convolutions,
            stream,
            gauge=settings.sees,
            validation=settings.validation,
            progress=progress,
        )
    asked = np.linspace(0, len(features) - 1, min(len(features), settings.questions)).astype(int)
    questions = features[torch.from_numpy(asked)]
    return Attacker(settings, shadows, reconstructor, questions, features.mean(dim=0))


def _shadows(
    features: torch.Tensor,
    labels: NDArray[np.int64],
    classes: int,
    settings: FewShotSettings,
    stream: Stream,
    bias: bool,
    public: torch.Tensor | None,
    kept: Path | None,
    progress: Progress,
) -> Population:
    """Return shadow heads as they would leave."""
    rows = balanced_sets(labels, classes, settings.shadows, settings.images_per_class, stream)
    columns = labels_of_sets(classes, settings.images_per_class)
    known, shadows = with_ones(features, bias), None
    if settings.hidden:
        shadows = train_two_layers(
            known,
            columns,
            rows,
            classes,
            settings.hidden,
            settings.activation,
            settings.head,
            stream,
            point=features.mean(dim=0),
            progress=progress,
            kept=kept,
        )
        return shadows if settings.averaged == 1 else Averaged(shadows, settings.averaged)
    private = None if settings.dp is None else private_of(settings.dp, settings.head)
    left: Population = train_shadows(
        known,
        columns,
        rows,
        classes,
        settings.head,
        stream,
        progress=progress,
        private=private,
        kept=kept,
    )
    if settings.distilled_on:
        left = Distilled(left, distillation(_answered(public, settings, bias)))
    return left if settings.averaged == 1 else Averaged(left, settings.averaged)


def victims_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    settings: FewShotSettings,
    stream: Stream,
    *,
    bias: bool = True,
    public: torch.Tensor | None = None,
) -> tuple[Linear, ...]:
    """Train a head as its owner does: plainly, privately, or with a student that leaves instead.

    Args:
        features: ``[n, D]`` of his images.
        labels: ``[n]``.
        task: of the head.
        settings: how he trains, which are those that an attacker knows.
        stream: where his initial weights are drawn from.
        bias: whether the head has biases.
        public: as for :func:`learn`.

    Returns:
        Its layers.
    """
    head: tuple[Linear, ...]
    if settings.dp is not None:
        head = (
            train_private_head(features, labels, task, settings.head, settings.dp, stream, bias),
        )
    else:
        head, _ = train_head(features, labels, task, settings.head, stream, bias=bias)
    if settings.distilled_on:
        student = torch.from_numpy(head[0].matrix()).float()
        student = student @ distillation(_answered(public, settings, bias))
        head = (Linear(student[:, :-1], student[:, -1]),)
    return head


def _answered(public: torch.Tensor | None, settings: FewShotSettings, bias: bool) -> torch.Tensor:
    """Return what a student is distilled on.

    Raises:
        FlSimError: if there are too few public images.
    """
    have = 0 if public is None else len(public)
    if public is None or have < settings.distilled_on:
        raise FlSimError(
            f"distilled_on is {settings.distilled_on}, but there are {have} public images; lower "
            f"it or give more."
        )
    return with_ones(public[: settings.distilled_on], bias)


def attack_heads(
    attacker: Attacker, heads: list[Linear], originals: torch.Tensor, draws: int, stream: Stream
) -> tuple[torch.Tensor, Evidence]:
    """Attack victims' heads and weigh what was found; see :mod:`fl_sim.reconstruction.evidence`.

    Args:
        attacker: who has learnt.
        heads: the victims', at least 2.
        originals: ``[victims, classes, per_class, channels, height, width]``, which only the
            measurement sees.
        draws: from the shadow Gaussian.
        stream: where they are drawn from.

    Returns:
        The images ``[victims, classes, channels, height, width]``, and the evidence.
    """
    recovered = torch.stack([attacker.reconstruct(head) for head in heads])
    return recovered, weigh(recovered, attacker.null(draws, stream), originals)
