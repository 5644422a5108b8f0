"""Utility against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from fl_sim.data.base import MULTI_LABEL, Task
from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import utility

BINARY = Task("binary-class", ("normal", "pneumonia"))
MULTI = Task("multi-class", ("a", "b", "c", "d"))
LABELS = Task(MULTI_LABEL, ("mass", "nodule", "hernia"))


def scores_of(task: Task, n: int, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(n, task.outputs, generator=torch.Generator().manual_seed(seed))
    return task.scores(logits)


def integers(high: int, shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_binary_is_that_of_sklearn() -> None:
    scores, labels = scores_of(BINARY, 200), integers(2, (200,))
    values = utility(scores, labels, BINARY)
    assert values["auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert values["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(1))
    )


def test_multi_class_is_that_of_sklearn() -> None:
    scores, labels = scores_of(MULTI, 300), integers(4, (300,))
    values = utility(scores, labels, MULTI)
    assert values["auc"] == pytest.approx(
        roc_auc_score(labels, scores.double(), multi_class="ovr", average="macro")
    )
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert values["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(1))
    )


def test_multi_label_is_that_of_sklearn() -> None:
    scores, labels = scores_of(LABELS, 150), integers(2, (150, 3))
    values = utility(scores, labels, LABELS)
    assert values["auc"] == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    for index, name in enumerate(LABELS.label_names):
        assert values[f"auc[{name}]"] == pytest.approx(
            roc_auc_score(labels[:, index], scores[:, index])
        )
    answers = (scores > 0.5).long()
    accuracies = [accuracy_score(labels[:, k], answers[:, k]) for k in range(3)]
    balanced = [balanced_accuracy_score(labels[:, k], answers[:, k]) for k in range(3)]
    assert values["accuracy"] == pytest.approx(np.mean(accuracies))
    assert values["balanced_accuracy"] == pytest.approx(np.mean(balanced))


def test_a_missing_class_is_left_out() -> None:
    scores, labels = scores_of(MULTI, 100), integers(3, (100,))
    values = utility(scores, labels, MULTI)
    expected = [roc_auc_score(labels == k, scores[:, k]) for k in range(3)]
    assert values["auc"] == pytest.approx(np.mean(expected))
    recalls = [float((scores.argmax(1)[labels == k] == k).float().mean()) for k in range(3)]
    assert values["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize("task", [BINARY, MULTI])
def test_a_single_class_ranks_nothing(task: Task) -> None:
    values = utility(scores_of(task, 10), torch.ones(10, dtype=torch.long), task)
    assert values["auc"] == 0.5
    assert values["balanced_accuracy"] == values["accuracy"]


def test_a_label_that_never_occurs_has_no_auc_of_its_own() -> None:
    scores, labels = scores_of(LABELS, 50), integers(2, (50, 3))
    labels[:, 2] = 0
    values = utility(scores, labels, LABELS)
    assert "auc[hernia]" not in values
    assert values["auc"] == pytest.approx((values["auc[mass]"] + values["auc[nodule]"]) / 2)
    assert utility(scores, torch.zeros_like(labels), LABELS)["auc"] == 0.5


@pytest.mark.parametrize("task", [BINARY, MULTI, LABELS])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_model_scores_as_guessing(task: Task, bad: float) -> None:
    labels = integers(2, (40, 3) if task.multi_label else (40,))
    values = utility(torch.full((40, task.outputs), bad), labels, task)
    chance = 0.5 if task.multi_label else 1 / task.outputs
    assert values["auc"] == 0.5
    assert values["accuracy"] == pytest.approx(chance)
    assert values["balanced_accuracy"] == pytest.approx(chance)


def test_a_single_bad_score_costs_its_own_image_only() -> None:
    labels = integers(2, (40,))
    scores = torch.nn.functional.one_hot(labels, 2).float()
    scores[3, 0] = math.nan
    assert utility(scores, labels, BINARY)["accuracy"] == pytest.approx(39.5 / 40)


def test_shapes_and_labels_are_checked() -> None:
    with pytest.raises(FlSimError, match="needs scores"):
        utility(torch.rand(4, 3), torch.zeros(4, dtype=torch.long), BINARY)
    with pytest.raises(FlSimError, match="needs scores"):
        utility(torch.rand(4, 2), torch.zeros(4, 1, dtype=torch.long), BINARY)
    with pytest.raises(FlSimError, match="no images"):
        utility(torch.rand(0, 2), torch.zeros(0, dtype=torch.long), BINARY)
    with pytest.raises(FlSimError, match="0 to 1"):
        utility(torch.rand(2, 2), torch.tensor([0, 2]), BINARY)
