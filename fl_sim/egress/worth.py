"""What a model is worth before and after, beside what its owner reaches without it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.data.base import Dataset, Split, Task
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.egress.decision import Figure
from fl_sim.egress.policy import UtilityLimits
from fl_sim.egress.record import Utility
from fl_sim.metrics.uncertainty import RESAMPLES, resampled, weighted_auc, weighted_dice
from fl_sim.metrics.utility import CHANCE_AUC, dice_by_volume, settled_scores, utility
from fl_sim.models.base import ModelSpec
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.training import predict

_QUANTILE = 1.959964


@dataclass(frozen=True)
class Worth:
    """A network's main figure on the test images.

    Args:
        value: AUC, or Dice of a segmentation.
        resampled: the same on resamples of the test set, ``[resamples]``; the same resamples for
            every network, so that differences can be taken.
    """

    value: float
    resampled: NDArray[np.float64]

    def figure(self, less: "Worth | None" = None) -> Figure:
        """Return it, or what it has more than another, with a 95 % interval over test images."""
        spread = self.resampled if less is None else self.resampled - less.resampled
        value = self.value if less is None else self.value - less.value
        half = _QUANTILE * float(np.std(spread, ddof=1))
        lowest = 0.0 if less is None else -1.0
        return Figure(value, max(lowest, value - half), min(1.0, value + half))


def worth(model: nn.Module, test: Split, task: Task) -> Worth:
    """Measure a network on test images.

    Args:
        model: called with pixels in [-1, 1].
        test: images with labels.
        task: theirs.
    """
    scores, labels = predict(model, test, task), torch.tensor(np.asarray(test.labels))
    value = utility(scores, labels, task, test.patients)[task.main_metric]
    if task.is_segmentation:
        dice = dice_by_volume(scores, labels, task, test.patients)
        metric, strata = weighted_dice(dice), np.zeros(len(dice), np.int64)
    else:
        values, truth, _ = settled_scores(scores, labels, task)
        metric = weighted_auc(values, truth, task)
        strata = np.zeros(len(truth), np.int64) if task.multi_label else truth
    again = np.concatenate([metric(weights) for weights in resampled(strata, RESAMPLES)])
    return Worth(value, again)


def own_network(
    spec: ModelSpec,
    model: nn.Module,
    held_out: Split,
    data: Dataset,
    epochs: int,
    stream: Stream,
    progress: Progress,
) -> nn.Module:
    """Train the same network anew on the held-out images alone, as an owner can without anybody.

    Args:
        spec: the network.
        model: one of its kind, which is thrown away.
        held_out: what it is trained on.
        data: whose task it is.
        epochs: passes over them.
        stream: where randomness is derived from.
        progress: where to report.
    """
    defense: Any = DEFENSES.get("scratch")
    release = Release(model, spec, held_out, data.task, stream, progress=progress)
    defense(defense.Settings(epochs=epochs)).apply(release)
    return release.model


def utility_figures(
    asked: UtilityLimits, before: Worth, after: Worth, own: Worth, task: Task
) -> tuple[Utility, dict[str, Figure]]:
    """Return what a record says of a model's worth, and the criteria's figures."""
    error = float(np.std(after.resampled, ddof=1))
    summary = Utility(
        metric=task.main_metric,
        before=before.value,
        after=after.value,
        own=own.value,
        chance=None if task.is_segmentation else CHANCE_AUC,
        error=error,
    )
    figures = {"utility": after.figure(), "utility_lost": before.figure(after)}
    if asked.above_own is not None:
        figures["utility_above_own"] = after.figure(own)
    return summary, figures
