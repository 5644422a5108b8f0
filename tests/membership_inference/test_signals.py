"""What an attack sees of an answer, against the formulas written out in plain NumPy."""

import math

import numpy as np
import pytest
import torch

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.membership_inference.signals import (
    MOST,
    ask,
    log_odds,
    log_odds_of_probabilities,
    log_probability,
)

CLASSES = Task("multi-class", ("a", "b", "c"))
LABELS = Task(MULTI_LABEL, ("a", "b"))
MASKS = Task(SEGMENTATION, ("ground", "organ"))


def _softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def test_of_one_label_it_is_that_of_the_softmax_probability() -> None:
    logits, labels = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), [0, 2]
    told = log_odds(torch.tensor(logits), torch.tensor(labels), CLASSES)
    for row, label, found in zip(logits, labels, told, strict=True):
        p = _softmax(row)[label]
        assert found == pytest.approx(math.log(p / (1 - p)))


def test_of_several_labels_it_is_that_of_all_of_them_together() -> None:
    logits, labels = np.array([[2.0, -1.0], [0.3, 0.4]]), np.array([[1, 0], [0, 1]])
    told = log_odds(torch.tensor(logits), torch.tensor(labels), LABELS)
    for row, truth, found in zip(logits, labels, told, strict=True):
        single = 1 / (1 + np.exp(-row))
        p = float(np.prod(np.where(truth == 1, single, 1 - single)))
        assert found == pytest.approx(math.log(p / (1 - p)))


def test_of_a_mask_it_is_that_of_the_geometric_mean_over_pixels() -> None:
    logits = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 1, 0]] * 3, [[1, 1, 0]] * 3])
    told = log_odds(logits, labels, MASKS)
    for image in range(2):
        each = [
            _softmax(logits[image, :, row, column].numpy())[labels[image, row, column]]
            for row in range(3)
            for column in range(3)
        ]
        p = float(np.prod(each)) ** (1 / 9)
        assert told[image] == pytest.approx(math.log(p / (1 - p)), rel=1e-5)


def test_probabilities_tell_the_same_as_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=generator).double(), torch.arange(6) % 3
    scores = logits.softmax(dim=1)
    told = log_odds_of_probabilities(scores, labels, CLASSES)
    np.testing.assert_allclose(told, log_odds(logits, labels, CLASSES), rtol=1e-9)
    truth = torch.tensor([[0, 1]] * 6)
    told = log_odds_of_probabilities(logits[:, :2].sigmoid(), truth, LABELS)
    np.testing.assert_allclose(told, log_odds(logits[:, :2], truth, LABELS), rtol=1e-9)


def test_certainty_ends_somewhere_and_no_number_tells_nothing() -> None:
    logits = torch.tensor([[1e9, 0.0, 0.0], [-1e9, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    told = log_odds(logits, torch.zeros(3, dtype=torch.long), CLASSES)
    assert told.tolist() == [MOST, -MOST, 0.0]
    sure = log_odds(torch.tensor([[900.0, -900.0]]), torch.tensor([[1, 0]]), LABELS)
    assert np.isfinite(sure).all() and sure[0] > 600
    ends = log_odds_of_probabilities(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0]), CLASSES)
    assert np.isfinite(ends).all() and ends[0] > 20


def test_log_odds_tell_the_probability_again() -> None:
    p = np.array([1e-12, 0.2, 0.999])
    np.testing.assert_allclose(np.exp(log_probability(np.log(p / (1 - p)))), p, rtol=1e-9)
    assert log_probability(np.array([-MOST]))[0] == pytest.approx(-MOST)


def test_what_is_no_probability_or_has_no_label_is_refused() -> None:
    with pytest.raises(FlSimError, match="between 0 and 1"):
        log_odds_of_probabilities(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]), CLASSES)
    with pytest.raises(FlSimError, match="2 answers and 1 labels"):
        log_odds(torch.zeros(2, 3), torch.tensor([0]), CLASSES)


def test_a_network_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 3)
    ).train()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    split = Split(images, np.arange(5) % 3)
    first, second = ask(network, split, CLASSES), ask(network, split, CLASSES)
    assert network.training and (first == second).all() and len(set(first)) == 5
