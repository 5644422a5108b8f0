"""What a model is worth for its task: AUC, accuracy and balanced accuracy, or Dice.

A defence may leave a model that outputs nothing but NaN; that is a result and is scored as
guessing, or as a wrong mask, not an error.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.data.base import NO_ANSWER, Split, Task, predicted_masks
from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import HIGHER_BETTER, METRICS, Metric
from fl_sim.training import predict

CHANCE_AUC = 0.5
_MASKS_AT_ONCE = 256


def measured_utility(model: nn.Module, test: Split, task: Task) -> dict[str, float]:
    """Score a network's answers to a split; see :func:`utility`.

    Args:
        model: called with pixels in [-1, 1].
        test: images with labels, and patients where known.
        task: theirs.
    """
    labels = torch.tensor(np.asarray(test.labels))
    return utility(predict(model, test, task), labels, task, test.patients)


def utility(
    scores: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    patients: NDArray[np.str_] | None = None,
) -> dict[str, float]:
    """Score what a model says against the labels.

    ``auc``: with two classes the ordinary one, of the second output; with more, one against the
    rest, unweighted mean over the classes the labels have both with and without; multi-label, the
    unweighted mean over the labels that have both values, beside ``auc[<label>]`` of each of
    those. Where no class or label has both values, nothing can be ranked and it is 0.5.
    ``accuracy``: share of images whose highest output is right; multi-label, share of right
    answers at a threshold of 0.5, mean over labels (as MedMNIST's evaluator).
    ``balanced_accuracy``: mean recall over the classes present (Brodersen et al. 2010);
    multi-label, over the values present of each label, then mean over labels.

    An image with a score that is not finite counts as a guess: all its outputs are taken as equal
    in the ranking, and it is worth ``1 / classes`` of a right answer (1/2 a label).

    Segmentation has ``dice``, the unweighted mean over the foreground classes of
    ``dice[<class>]``, which is the mean of the Dice coefficient ``2 |A & B| / (|A| + |B|)`` (Dice
    1945) over volumes: all slices of a patient together, as the Medical Segmentation Decathlon
    evaluates; over images where no patients are known. A class that neither the labels nor the
    answer of a volume have is left out there, and 1 where no volume has it. A slice with a score
    that is not finite is wrong in every pixel: its Dice is 0.

    Args:
        scores: probabilities ``[n, outputs]``; for a segmentation ``[n, classes, height, width]``,
            or the masks of :func:`fl_sim.data.base.predicted_masks`.
        labels: ``[n]`` integers, ``[n, outputs]`` zeros and ones for multi-label, or masks
            ``[n, height, width]``.
        task: what the outputs mean.
        patients: of each image, ``[n]``; for a segmentation, where known.

    Returns:
        Values in [0, 1], never NaN, by metric name.

    Raises:
        FlSimError: if shapes do not fit the task or there is no image.
    """
    if task.is_segmentation:
        return _segmentation(scores, labels, task, patients)
    values, truth, right = settled_scores(scores, labels, task)
    if task.multi_label:
        return _multi_label(values, truth, right, task)
    return {
        "auc": _multi_class_auc(values, truth),
        "accuracy": float(right.mean()),
        "balanced_accuracy": _mean_recall(right, truth),
    }


def settled_scores(
    scores: torch.Tensor, labels: torch.Tensor, task: Task
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return a classifier's scores with guesses in place of what is not finite.

    Args:
        scores, labels, task: as of :func:`utility`.

    Returns:
        The scores, finite, ``[n, outputs]``; the labels; and how far each answer is right: ``[n]``,
        or of each label ``[n, outputs]``.

    Raises:
        FlSimError: if shapes do not fit the task or there is no image.
    """
    _check(scores, labels, task)
    values = scores.detach().cpu().double().numpy()
    truth = labels.detach().cpu().long().numpy()
    guessed = ~np.isfinite(values).all(axis=1)
    chance = 0.5 if task.multi_label else 1.0 / task.outputs
    values = np.where(guessed[:, None], chance, values)
    if task.multi_label:
        return values, truth, np.where(guessed[:, None], chance, (values > 0.5) == truth)
    return values, truth, np.where(guessed, chance, values.argmax(axis=1) == truth)


def _check(scores: torch.Tensor, labels: torch.Tensor, task: Task) -> None:
    n = len(scores)
    expected = (n, task.outputs) if task.multi_label else (n,)
    if tuple(scores.shape) != (n, task.outputs) or tuple(labels.shape) != expected:
        raise FlSimError(
            f"A {task.kind} task with {task.outputs} outputs needs scores [n, {task.outputs}] and "
            f"labels {list(expected)}, but their shapes are {list(scores.shape)} and "
            f"{list(labels.shape)}."
        )
    if n == 0:
        raise FlSimError("There are no images to measure utility on.")
    top = 2 if task.multi_label else task.outputs
    if int(labels.min()) < 0 or int(labels.max()) >= top:
        raise FlSimError(f"Labels must lie in 0 to {top - 1}.")


def _segmentation(
    scores: torch.Tensor, labels: torch.Tensor, task: Task, patients: NDArray[np.str_] | None
) -> dict[str, float]:
    dice = dice_by_volume(scores, labels, task, patients)
    values = {}
    for index, name in enumerate(task.label_names[1:]):
        present = dice[~np.isnan(dice[:, index]), index]
        values[f"dice[{name}]"] = float(present.mean()) if len(present) else 1.0
    return {"dice": float(np.mean(list(values.values()))), **values}


def dice_by_volume(
    scores: torch.Tensor, labels: torch.Tensor, task: Task, patients: NDArray[np.str_] | None
) -> NDArray[np.float64]:
    """Return the Dice coefficient of each volume and foreground class.

    Args:
        scores, labels, task, patients: as of :func:`utility`.

    Returns:
        ``[volumes, classes]`` in [0, 1], patients in the order of their names, or images where none
        are known; ``nan`` where neither labels nor answer of a volume have a class.

    Raises:
        FlSimError: if shapes do not fit the task or there is no image.
    """
    _check_masks(scores, labels, task, patients)
    counts = list(_counts(scores, labels, task))
    overlap = np.concatenate([part for part, _ in counts])
    sizes = np.concatenate([part for _, part in counts])
    if patients is not None:
        _, volumes = np.unique(patients, return_inverse=True)
        overlap, sizes = _pooled(overlap, volumes), _pooled(sizes, volumes)
    dice: NDArray[np.float64] = np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), np.nan)
    return dice


def _counts(
    scores: torch.Tensor, labels: torch.Tensor, task: Task
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield ``|A & B|`` and ``|A| + |B|`` of each image and foreground class, some images at once.

    An image without an answer counts as if all of it had been taken for each class, in vain.
    """
    foreground = torch.arange(1, task.outputs).reshape(1, -1, 1, 1)
    for said, truth in zip(
        scores.detach().split(_MASKS_AT_ONCE), labels.split(_MASKS_AT_ONCE), strict=True
    ):
        masks = (predicted_masks(said) if said.ndim == 4 else said).cpu()[:, None]
        found, wanted = masks == foreground, truth.cpu()[:, None] == foreground
        overlap = (found & wanted).sum(dim=(2, 3))
        sizes = (found | (masks == NO_ANSWER)).sum(dim=(2, 3)) + wanted.sum(dim=(2, 3))
        yield overlap.numpy(), sizes.numpy()


def _pooled(counts: NDArray[np.int64], volumes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum the counts of slices ``[n, classes]`` over each volume's slices."""
    sums = np.zeros((volumes.max() + 1, counts.shape[1]), dtype=np.int64)
    np.add.at(sums, volumes, counts)
    return sums


def _check_masks(
    scores: torch.Tensor, labels: torch.Tensor, task: Task, patients: NDArray[np.str_] | None
) -> None:
    n, *sides = labels.shape
    expected = [(n, *sides), (n, task.outputs, *sides)]
    if len(sides) != 2 or tuple(scores.shape) not in expected:
        raise FlSimError(
            f"A segmentation with {task.outputs} classes needs scores [n, {task.outputs}, height, "
            f"width] or masks [n, height, width], and labels [n, height, width], but the shapes "
            f"are {list(scores.shape)} and {list(labels.shape)}."
        )
    if n == 0:
        raise FlSimError("There are no images to measure utility on.")
    if int(labels.min()) < 0 or int(labels.max()) >= task.outputs:
        raise FlSimError(f"Labels must lie in 0 to {task.outputs - 1}.")
    if patients is not None and len(patients) != n:
        raise FlSimError(f"There are {len(patients)} patients for {n} masks; give one an image.")


def _multi_label(
    values: NDArray[np.float64], truth: NDArray[np.int64], right: NDArray[np.float64], task: Task
) -> dict[str, float]:
    aucs = {
        name: auc
        for index, name in enumerate(task.label_names)
        if (auc := _auc(truth[:, index], values[:, index])) is not None
    }
    recalls = [_mean_recall(right[:, k], truth[:, k]) for k in range(task.outputs)]
    return {
        "auc": float(np.mean(list(aucs.values()))) if aucs else CHANCE_AUC,
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        **{f"auc[{name}]": auc for name, auc in aucs.items()},
    }


def _multi_class_auc(values: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    # With two classes both outputs rank alike but for rounding; the ordinary AUC is the second's.
    classes = [1] if values.shape[1] == 2 else range(values.shape[1])
    aucs = [_auc(truth == k, values[:, k]) for k in classes]
    defined = [auc for auc in aucs if auc is not None]
    return float(np.mean(defined)) if defined else CHANCE_AUC


def _auc(
    positive: NDArray[np.int64] | NDArray[np.bool_], values: NDArray[np.float64]
) -> float | None:
    """Area under the ROC curve of one output, or ``None`` where a value is missing."""
    if positive.min() == positive.max():
        return None
    # Takes a second to import, and a process that only trains does not need it.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, values))


def _mean_recall(right: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([right[truth == value].mean() for value in np.unique(truth)]))


METRICS.register("auc", "area under the ROC curve, mean over classes or labels")(
    Metric(
        "AUC",
        "utility",
        HIGHER_BETTER,
        brief=3,
        range=(0.0, 1.0),
        floors=("auc_floor_scratch",),
        order=10,
    )
)
METRICS.register("dice", "Dice coefficient of masks, mean over foreground classes")(
    Metric(
        "Dice",
        "utility",
        HIGHER_BETTER,
        brief=3,
        range=(0.0, 1.0),
        floors=("dice_floor_scratch",),
        order=20,
    )
)
METRICS.register("accuracy", "share of right answers")(
    Metric(
        "Accuracy",
        "utility",
        HIGHER_BETTER,
        brief=3,
        range=(0.0, 1.0),
        floors=("accuracy_floor_scratch",),
        trials="test_images",
        shown=(),
        order=30,
    )
)
METRICS.register("balanced_accuracy", "mean recall over the classes present")(
    Metric(
        "Balanced accuracy",
        "utility",
        HIGHER_BETTER,
        brief=3,
        range=(0.0, 1.0),
        floors=("balanced_accuracy_floor_scratch",),
        shown=(),
        order=40,
    )
)
