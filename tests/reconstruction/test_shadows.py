"""Shadow heads by products of features, against torch's own gradient descent."""

import numpy as np
import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import Shadows, train_shadows, with_ones
from fl_sim.sealing.heads import HeadSettings
from tests.reconstruction.heads_kit import CLASSES, images

SETTINGS = HeadSettings(epochs=50, learning_rate=0.2, weight_decay=0.05, init_std=0.1)


def _shadows(bias: bool = True, size: int | None = None) -> Shadows:
    features, _, labels = images(60, seed=0)
    rows = balanced_sets(labels, CLASSES, 11, 2, Stream(4))
    known = with_ones(features, bias)
    own = labels_of_sets(CLASSES, 2)
    return train_shadows(known, own, rows, CLASSES, SETTINGS, Stream(4), size=size)


@pytest.mark.parametrize("bias", [True, False])
def test_a_shadow_head_is_what_torch_trains(bias: bool) -> None:
    shadows = _shadows(bias)
    labels = torch.from_numpy(labels_of_sets(CLASSES, 2))
    for head in (0, 7):
        weight = shadows.initial(head, head + 1)[0].requires_grad_()
        assert weight.detach()[:, :-1].std() > 0.05 and not weight[:, -1].any()
        optimizer = torch.optim.SGD([weight], SETTINGS.learning_rate, weight_decay=0.05)
        features = shadows.features[torch.from_numpy(shadows.rows[head]).long()]
        for _ in range(SETTINGS.epochs):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(features @ weight.T, labels).backward()
            optimizer.step()
        found = shadows.weights(head, head + 1)[0]
        torch.testing.assert_close(found, weight.detach(), atol=1e-6, rtol=0)
        assert bool(found[:, -1].any()) is bias


def test_chunks_change_no_head() -> None:
    whole, cut = _shadows(), _shadows(size=3)
    expected = whole.weights(0, 11)
    parts = list(cut.chunks(size=4))
    assert [len(rows) for rows, _ in parts] == [4, 4, 3]
    torch.testing.assert_close(torch.cat([weights for _, weights in parts]), expected)
    torch.testing.assert_close(cut.weights(5, 6), expected[5:6])


def test_heads_have_initial_weights_of_their_own() -> None:
    initial = _shadows().initial(0, 11).flatten(1)
    assert len(initial.unique(dim=0)) == 11


def test_sets_are_balanced_and_disjoint_until_a_class_is_used_up() -> None:
    labels = np.array([0] * 5 + [1] * 20)
    rows = balanced_sets(labels, 2, 9, 2, Stream(0))
    assert rows.shape == (9, 4)
    assert (labels[rows] == labels_of_sets(2, 2)).all()
    assert len(np.unique(rows[:2, :2])) == 4 and len(np.unique(rows[:, 2:])) == 18
    assert all(len(np.unique(row)) == 4 for row in rows)


def test_a_class_with_too_few_images_is_refused() -> None:
    with pytest.raises(FlSimError, match="Class 1 has 1 images, but each set takes 2"):
        balanced_sets(np.array([0, 0, 1]), 2, 1, 2, Stream(0))


def test_heads_that_diverge_are_refused() -> None:
    features, _, labels = images(12, seed=0)
    rows = balanced_sets(labels, CLASSES, 2, 1, Stream(0))
    wild = HeadSettings(epochs=400, learning_rate=1e3, weight_decay=1.0)
    own = labels_of_sets(CLASSES, 1)
    with pytest.raises(FlSimError, match=r"grow without end; lower learning_rate \(1000\)"):
        train_shadows(with_ones(features), own, rows, CLASSES, wild, Stream(0))
