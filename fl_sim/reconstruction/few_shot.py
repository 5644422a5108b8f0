"""The few-shot reconstruction attack: from a released linear head to the images behind it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.reconstruction.decisions import head_from_decisions
from fl_sim.reconstruction.evidence import Evidence, gaussian_heads, weigh
from fl_sim.reconstruction.ridge import Ridge, fit_ridge
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import Shadows, train_shadows, with_ones
from fl_sim.sealing.heads import HeadSettings, Linear
from fl_sim.settings import Settings

MOST_SHADOWS = 10_000_000


class FewShotSettings(Settings):
    """What an attacker does to reconstruct the images that a linear head was trained on.

    Args:
        images_per_class: in the victim's training set, which is taken to be balanced.
        shadows: heads that the attacker trains on his own images.
        validation: share of them on which the ridge is chosen.
        sees: ``"weights"`` (white box) or ``"decisions"`` (black box: the class of each image that
            he asks about, from which he learns weights by logistic regression).
        questions: images of his own that he asks about at most, where he sees decisions.
        head: how the victim trains, which the attacker knows.
    """

    images_per_class: int = Field(1, ge=1, le=1000)
    shadows: int = Field(3000, ge=2, le=MOST_SHADOWS)
    validation: float = Field(0.1, gt=0, lt=1)
    sees: Literal["weights", "decisions"] = "weights"
    questions: int = Field(2000, ge=2)
    head: HeadSettings = HeadSettings()


@dataclass(frozen=True)
class Attacker:
    """Who has learnt the way from heads to images.

    Args:
        settings: how he has.
        shadows: his heads.
        ridge: his reconstructor.
        questions: ``[questions, D]``, features of his own images, which he asks about.
    """

    settings: FewShotSettings
    shadows: Shadows
    ridge: Ridge
    questions: torch.Tensor

    def reconstruct(self, head: Linear) -> torch.Tensor:
        """Return one image of each class, ``[classes, channels, height, width]`` in [0, 1].

        Args:
            head: the released one; for an attacker who sees decisions what answers him, and no
                more is used of it.
        """
        return self.ridge.reconstruct(self._seen(head)[None])[0]

    def null(self, draws: int, stream: Stream) -> torch.Tensor:
        """Reconstruct from heads that know no victim.

        Returns:
            ``[draws, classes, channels, height, width]``.
        """
        heads = gaussian_heads(self.shadows, draws, stream, self.ridge.gauge)
        return self.ridge.reconstruct(heads)

    def _seen(self, head: Linear) -> torch.Tensor:
        weights = torch.from_numpy(head.matrix()).float()
        if self.settings.sees == "weights":
            return weights
        decisions = (with_ones(self.questions) @ weights.T).argmax(dim=1)
        return head_from_decisions(self.questions, decisions, len(weights))


def learn(
    features: torch.Tensor,
    pixels: torch.Tensor,
    labels: NDArray[np.int64],
    classes: int,
    settings: FewShotSettings,
    stream: Stream,
    *,
    bias: bool = True,
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
        progress: where to report.

    Raises:
        FlSimError: if there are too few images, or heads diverge.
    """
    if not len(features) == len(pixels) == len(labels) or np.ndim(labels) != 1:
        raise FlSimError(
            f"Few-shot reconstruction needs features, an image and one class of each image, not "
            f"{len(features)} features, {len(pixels)} images and labels {list(np.shape(labels))}."
        )
    rows = balanced_sets(labels, classes, settings.shadows, settings.images_per_class, stream)
    shadows = train_shadows(
        with_ones(features, bias),
        labels_of_sets(classes, settings.images_per_class),
        rows,
        classes,
        settings.head,
        stream,
        progress=progress,
    )
    ridge = fit_ridge(
        shadows,
        pixels,
        gauge=settings.sees,
        validation=settings.validation,
        progress=progress,
    )
    asked = np.linspace(0, len(features) - 1, min(len(features), settings.questions)).astype(int)
    return Attacker(settings, shadows, ridge, features[torch.from_numpy(asked)])


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
