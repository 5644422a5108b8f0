"""Standard errors over test images, against drawing test sets and measuring each with sklearn."""

import time

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fl_sim.data.base import MULTI_LABEL, Task
from fl_sim.metrics.uncertainty import resampled, utility_errors, weighted_auc, weighted_dice
from fl_sim.metrics.utility import utility


def task(kind: str, outputs: int) -> Task:
    return Task(kind, tuple(f"c{k}" for k in range(outputs)))


def answered(n: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    labels = random.choice(outputs, n, p=np.arange(1, outputs + 1) / sum(range(1, outputs + 1)))
    labels[:outputs] = np.arange(outputs)
    logits = random.normal(size=(n, outputs))
    logits[np.arange(n), labels] += 1.5
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return torch.tensor(scores.round(2)), torch.tensor(labels)  # rounded: many ties


@pytest.mark.parametrize("outputs", [2, 4])
def test_the_weighted_auc_is_sklearns_of_the_images_drawn(outputs: int) -> None:
    scores, labels = answered(120, outputs)
    values, truth = scores.numpy(), labels.numpy()
    kinds = [1] if outputs == 2 else range(outputs)
    (weights,) = resampled(truth, 20)
    for found, counts in zip(
        weighted_auc(values, truth, task("multi-class", outputs))(weights), weights, strict=True
    ):
        drawn = np.repeat(np.arange(120), counts.astype(int))
        assert (np.bincount(truth[drawn]) == np.bincount(truth)).all()  # each class as large
        expected = [roc_auc_score(truth[drawn] == k, values[drawn, k]) for k in kinds]
        assert found == pytest.approx(np.mean(expected))


def test_the_multi_label_auc_leaves_out_labels_without_both_values() -> None:
    random = np.random.default_rng(0)
    values, truth = random.random((40, 3)).round(1), np.zeros((40, 3), dtype=np.int64)
    truth[:20, 0], truth[3, 1] = 1, 1  # the last label has no positive
    (weights,) = resampled(np.zeros(40, dtype=np.int64), 30)
    found = weighted_auc(values, truth, task(MULTI_LABEL, 3))(weights)
    for auc, counts in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(40), counts.astype(int))
        both = [k for k in range(3) if 0 < truth[drawn, k].sum() < 40]
        expected = [roc_auc_score(truth[drawn, k], values[drawn, k]) for k in both]
        assert auc == pytest.approx(np.mean(expected))


def test_errors_are_those_of_new_test_sets() -> None:
    """The spread over independent test sets of the same kind, which a bootstrap estimates."""
    kind = task("multi-class", 4)
    of_sets = [utility(*answered(300, 4, seed), kind) for seed in range(60)]
    estimated = [utility_errors(*answered(300, 4, seed), kind) for seed in range(6)]
    for metric in ("auc", "accuracy"):
        spread = np.std([values[metric] for values in of_sets], ddof=1)
        error = np.mean([values[f"{metric}_error"] for values in estimated])
        assert 0.65 < error / spread < 1.5, metric


def test_more_images_tell_more_and_the_same_images_the_same() -> None:
    kind = task("multi-class", 4)
    few, many = (utility_errors(*answered(n, 4), kind)["auc_error"] for n in (100, 1600))
    assert few == pytest.approx(4 * many, rel=0.4)
    assert utility_errors(*answered(100, 4), kind)["auc_error"] == few
    perfect = torch.eye(4)[torch.arange(40) % 4]
    assert utility_errors(perfect, torch.arange(40) % 4, kind) == {
        "auc_error": 0.0,
        "accuracy_error": 0.0,
        "test_images": 40.0,
    }
    broken = utility_errors(perfect * torch.nan, torch.arange(40) % 4, kind)
    assert broken["auc_error"] == broken["accuracy_error"] == 0.0  # all guesses


def test_dice_is_resampled_by_volume() -> None:
    dice = np.array([[0.2, np.nan], [0.8, 1.0], [0.5, np.nan]])
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    # The second class is in one volume; where that is not drawn, nothing was wrong.
    assert weighted_dice(dice)(weights) == pytest.approx([0.75, (0.3 + 1.0) / 2])
    masks = torch.zeros(6, 4, 4, dtype=torch.int64)
    masks[:, :2] = 1
    said = masks.clone()
    said[:2] = 0  # one patient is missed altogether
    patients = np.array(["a", "a", "b", "b", "c", "c"])
    kind = Task("segmentation", ("background", "organ"))
    errors = utility_errors(said, masks, kind, patients)
    # Dice 0, 1, 1: the mean of three drawn has the deviation sqrt(2/9 / 3).
    assert errors["dice_error"] == pytest.approx((2 / 27) ** 0.5, rel=0.12)


def test_a_test_set_of_usual_size_takes_no_second() -> None:
    scores, labels = answered(2005, 7)
    begun = time.process_time()
    utility_errors(scores, labels, task("multi-class", 7))
    assert time.process_time() - begun < 5  # 0.3 on an idle core
