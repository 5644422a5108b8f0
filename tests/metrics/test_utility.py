"""Utility against scikit-learn, and Dice against MONAI and a slow count."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Task, predicted_masks
from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import utility

BINARY = Task("binary-class", ("normal", "pneumonia"))
MULTI = Task("multi-class", ("a", "b", "c", "d"))
LABELS = Task(MULTI_LABEL, ("mass", "nodule", "hernia"))
ORGANS = Task(SEGMENTATION, ("background", "lung", "heart", "liver"))


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


def masks_of(n: int, seed: int) -> torch.Tensor:
    """Blobs of classes 0 to 3, some images without some classes."""
    coarse = integers(4, (n, 1, 4, 4), seed).float()
    masks = torch.nn.functional.interpolate(coarse, size=(12, 12))[:, 0].long()
    masks[0] = 0
    masks[1][masks[1] == 2] = 0
    return masks


def scores_for(masks: torch.Tensor, seed: int) -> torch.Tensor:
    """Probabilities whose most probable class is mostly, but not always, the given one."""
    noise = torch.randn(len(masks), 4, 12, 12, generator=torch.Generator().manual_seed(seed))
    logits = noise + 1.5 * torch.nn.functional.one_hot(masks, 4).permute(0, 3, 1, 2)
    return ORGANS.scores(logits)


def slow_dice(answers: torch.Tensor, truth: torch.Tensor, groups: list[str]) -> dict[str, float]:
    """Dice by sets of places, a volume at a time."""
    values = {}
    for number, name in enumerate(ORGANS.label_names[1:], start=1):
        found = []
        for group in sorted(set(groups)):
            own = torch.tensor([other == group for other in groups])[:, None, None]
            said, wanted = (
                {tuple(place) for place in ((masks == number) & own).nonzero().tolist()}
                for masks in (answers, truth)
            )
            if said or wanted:
                found.append(2 * len(said & wanted) / (len(said) + len(wanted)))
        values[f"dice[{name}]"] = sum(found) / len(found) if found else 1.0
    return {"dice": sum(values.values()) / len(values), **values}


@pytest.mark.parametrize("volumes", [None, 5])
def test_dice_is_that_of_a_slow_count(volumes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_sim.metrics.utility._MASKS_AT_ONCE", 7)
    truth = masks_of(20, 2)
    scores = scores_for(truth, 3)
    groups = [f"v{row % volumes if volumes else row:02d}" for row in range(20)]
    patients = np.array(groups) if volumes else None
    values = utility(scores, truth, ORGANS, patients)
    expected = slow_dice(scores.argmax(1), truth, groups)
    assert values == pytest.approx(expected)
    assert 0.3 < values["dice"] < 0.95
    assert utility(predicted_masks(scores), truth.to(torch.uint8), ORGANS, patients) == values


def test_dice_of_images_is_that_of_monai() -> None:
    from monai.metrics.meandice import compute_dice

    truth = masks_of(20, 4)
    scores = scores_for(truth, 5)
    one_hot = [
        torch.nn.functional.one_hot(m, 4).permute(0, 3, 1, 2) for m in (scores.argmax(1), truth)
    ]
    # MONAI gives a class that the labels lack 1 or 0; both empty is left out here.
    theirs = compute_dice(*one_hot, include_background=False, ignore_empty=False)  # type: ignore[misc]
    either = (one_hot[0] + one_hot[1])[:, 1:].flatten(2).any(dim=2)
    values = utility(scores, truth, ORGANS)
    for index, name in enumerate(ORGANS.label_names[1:]):
        assert values[f"dice[{name}]"] == pytest.approx(
            float(theirs[either[:, index], index].double().mean()), rel=1e-6
        )


def test_right_masks_have_a_dice_of_one_and_missed_ones_of_nothing() -> None:
    truth = masks_of(6, 6)
    right = utility(truth, truth, ORGANS)
    assert set(right) == {"dice", "dice[lung]", "dice[heart]", "dice[liver]"}
    assert set(right.values()) == {1.0}
    assert set(utility(torch.zeros_like(truth), truth, ORGANS).values()) == {0.0}
    # Nothing to find and nothing found is right; something found is not.
    empty = torch.zeros_like(truth)
    assert set(utility(empty, empty, ORGANS).values()) == {1.0}
    heart = torch.where(truth > 0, 2, 0)
    assert utility(heart, empty, ORGANS)["dice[heart]"] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_segmentation_has_a_dice_of_zero(bad: float) -> None:
    truth = masks_of(8, 7)
    broken = torch.full((8, 4, 12, 12), bad)
    patients = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    for who in (None, patients):
        assert set(utility(broken, truth, ORGANS, who).values()) == {0.0}
    scores = torch.nn.functional.one_hot(truth, 4).permute(0, 3, 1, 2).float()
    scores[7, 0, 0, 0] = bad  # one slice of one of four volumes, which is otherwise right
    having = int((truth[:7] == 1).any(dim=(1, 2)).sum())
    assert utility(scores, truth, ORGANS)["dice[lung]"] == pytest.approx(having / (having + 1))
    assert 0.75 < utility(scores, truth, ORGANS, patients)["dice"] < 1


def test_shapes_and_values_of_masks_are_checked() -> None:
    truth = masks_of(4, 8)
    for scores, labels in (
        (torch.rand(4, 3, 12, 12), truth),
        (torch.rand(4, 4, 12, 11), truth),
        (torch.rand(4, 4), torch.zeros(4, dtype=torch.long)),
    ):
        with pytest.raises(FlSimError, match="needs scores"):
            utility(scores, labels, ORGANS)
    with pytest.raises(FlSimError, match="no images"):
        utility(truth[:0], truth[:0], ORGANS)
    with pytest.raises(FlSimError, match="0 to 3"):
        utility(truth, truth + 1, ORGANS)
    with pytest.raises(FlSimError, match="3 patients for 4 masks"):
        utility(truth, truth, ORGANS, np.array(["a", "b", "c"]))
