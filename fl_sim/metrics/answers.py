"""A model's answers to the test images, kept so that two models can be compared image by image."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError, printable
from fl_sim.files import write_atomically
from fl_sim.metrics.utility import dice_by_volume


@dataclass(frozen=True)
class Answers:
    """What a model said of the test images, in their order.

    Args:
        scores: float32: probabilities ``[n, outputs]``, as the model gave them, perhaps not finite;
            of a segmentation the Dice coefficient ``[volumes, classes]`` of each volume (image,
            where no patients are known) and foreground class, ``nan`` where there is none.
        labels: ``[n]`` classes or ``[n, outputs]`` zeros and ones; of a segmentation ``[0]``.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def is_dice(self) -> bool:
        """Whether these are Dice coefficients."""
        return len(self.labels) == 0


def answers(
    scores: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    patients: NDArray[np.str_] | None = None,
) -> Answers:
    """Return a model's answers as they are kept.

    Args:
        scores, labels, task, patients: as of :func:`fl_sim.metrics.utility.utility`.
    """
    if task.is_segmentation:
        dice = dice_by_volume(scores, labels, task, patients)
        return Answers(dice.astype(np.float32), np.empty(0, dtype=np.int64))
    told = scores.detach().cpu().float().numpy()
    return Answers(told, labels.detach().cpu().long().numpy())


def write_answers(path: Path, given: Answers) -> Path:
    """Write answers to a file (``.npz``, arrays ``scores`` and ``labels``), and return its path."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, scores=given.scores, labels=given.labels)
    return write_atomically(path, buffer.getvalue())


def read_answers(path: Path) -> Answers:
    """Read answers back.

    Raises:
        FlSimError: if the file is missing, damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            scores, labels = file["scores"], file["labels"]
    except FileNotFoundError:
        raise FlSimError(
            f"There is no file {printable(str(path))}; a run writes the answers of each stage to "
            f"answers/<stage>.npz in its folder."
        ) from None
    except Exception as error:  # a damaged archive raises whatever its reader meets
        raise _damaged(path) from error
    fits = scores.dtype == np.float32 and scores.ndim == 2 and labels.dtype == np.int64
    whole = labels.shape in ((0,), scores.shape[:1], scores.shape)
    if not fits or not whole or len(scores) == 0:
        raise _damaged(path)
    return Answers(scores, labels)


def _damaged(path: Path) -> FlSimError:
    return FlSimError(
        f"The file {printable(str(path))} does not hold a model's answers, or is damaged; "
        f"run the scenario again into an empty folder."
    )
