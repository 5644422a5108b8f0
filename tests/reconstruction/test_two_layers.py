"""Shadow heads of two layers by vmap, against torch's own gradient descent, and read as linear."""

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.few_shot import FewShotSettings, learn
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import with_ones
from fl_sim.reconstruction.two_layers import TwoLayers, tangent_of, tangents, train_two_layers
from fl_sim.sealing.heads import HeadSettings, Linear, head_logits
from tests.reconstruction.heads_kit import CLASSES, images

SETTINGS = HeadSettings(epochs=40, learning_rate=0.2, weight_decay=0.05, init_std=0.3)
UNITS = 5


def _shadows(activation, bias: bool = True, kept=None) -> TwoLayers:
    features, _, labels = images(60, seed=0)
    rows = balanced_sets(labels, CLASSES, 11, 2, Stream(4))
    own = labels_of_sets(CLASSES, 2)
    return train_two_layers(
        with_ones(features, bias),
        own,
        rows,
        CLASSES,
        UNITS,
        activation,
        SETTINGS,
        Stream(4),
        kept=kept,
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "square"])
def test_a_shadow_head_is_what_torch_trains(activation, bias: bool) -> None:
    shadows = _shadows(activation, bias)
    labels = torch.from_numpy(labels_of_sets(CLASSES, 2))
    for head in (0, 7):
        first, second = (part[0].requires_grad_() for part in shadows.initial(head, head + 1))
        optimizer = torch.optim.SGD([first, second], SETTINGS.learning_rate, weight_decay=0.05)
        features = shadows.features[torch.from_numpy(shadows.rows[head]).long()]
        for _ in range(SETTINGS.epochs):
            optimizer.zero_grad()
            units = features @ first.T
            active = units.relu() if activation == "relu" else units.square()
            logits = active @ second[:, :-1].T + (second[:, -1] if bias else 0)
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        found_first, found_second = (part[0] for part in shadows.layers(head, head + 1))
        torch.testing.assert_close(found_first, first.detach(), atol=1e-5, rtol=1e-4)
        expected = second.detach() if bias else second.detach() * (torch.arange(UNITS + 1) < UNITS)
        torch.testing.assert_close(found_second, expected, atol=1e-5, rtol=1e-4)
        assert bool(found_first[:, -1].any()) is bias


@pytest.mark.parametrize("activation", ["relu", "square"])
def test_a_tangent_has_the_head_s_logits_and_gradients_at_its_point(activation) -> None:
    shadows = _shadows(activation)
    first, second = shadows.layers(3, 4)
    head = tuple(Linear(part[0, :, :-1], part[0, :, -1]) for part in (first, second))
    point = shadows.point.clone().requires_grad_()
    logits = head_logits(head, point[None], activation)[0]
    gradients = torch.stack([torch.autograd.grad(z, point, retain_graph=True)[0] for z in logits])
    found = tangent_of(head, activation, shadows.point)
    torch.testing.assert_close(found.weight, gradients, atol=1e-5, rtol=1e-4)
    own = head_logits((found,), shadows.point[None])[0]
    torch.testing.assert_close(own, logits.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shadows.weights(3, 4)[0, :, :-1], gradients, atol=1e-5, rtol=1e-4)


def test_units_in_another_order_and_squares_with_other_signs_are_the_same_head() -> None:
    shadows = _shadows("square")
    first, second = shadows.layers(0, 1)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = first[:, order] * torch.tensor([1.0, -1, 1, -1, -1])[:, None]
    other = torch.cat([second[:, :, order], second[:, :, -1:]], dim=2)
    expected = tangents(first, second, "square", shadows.point)
    torch.testing.assert_close(tangents(turned, other, "square", shadows.point), expected)


def test_kept_heads_are_the_same(tmp_path) -> None:
    expected = _shadows("relu")
    made, read = _shadows("relu", kept=tmp_path), _shadows("relu", kept=tmp_path)
    for shadows in (made, read):
        for own, other in zip(shadows.layers(0, 11), expected.layers(0, 11), strict=True):
            assert torch.equal(own, other)


def test_images_are_read_from_two_layers_in_clear() -> None:
    head = HeadSettings(epochs=60, learning_rate=0.1, weight_decay=1e-4, init_std=0.05)
    settings = FewShotSettings(shadows=1500, head=head, hidden=8, activation="relu")
    features, pixels, labels = images(900, seed=0)
    attacker = learn(features, pixels, labels, CLASSES, settings, Stream(0))
    theirs, shown, kinds = images(30 * CLASSES, seed=9)
    rows = balanced_sets(kinds, CLASSES, 30, 1, Stream(9))
    own = train_two_layers(
        with_ones(theirs),
        labels_of_sets(CLASSES, 1),
        rows,
        CLASSES,
        8,
        "relu",
        head,
        Stream(5),
    )
    first, second = own.layers(0, 30)
    recovered = torch.stack(
        [
            attacker.reconstruct(*(Linear(p[h, :, :-1], p[h, :, -1]) for p in (first, second)))
            for h in range(30)
        ]
    )
    originals = shown[torch.from_numpy(rows).long()].unflatten(1, (CLASSES, 1))
    errors = (recovered - originals[:, :, 0]).square().flatten(2).mean(dim=2)
    guess = (attacker.without_head() - originals[:, :, 0]).square().flatten(2).mean(dim=2)
    assert float(errors.mean()) < 0.8 * float(guess.mean())


def test_heads_that_diverge_are_refused() -> None:
    features, _, labels = images(12, seed=0)
    rows = balanced_sets(labels, CLASSES, 2, 1, Stream(0))
    wild = HeadSettings(epochs=200, learning_rate=1e3, init_std=1.0)
    known, own = with_ones(features), labels_of_sets(CLASSES, 1)
    with pytest.raises(FlSimError, match=r"grow without end; lower learning_rate \(1000\)"):
        train_two_layers(known, own, rows, CLASSES, UNITS, "square", wild, Stream(0))


def test_noise_and_students_are_for_one_layer() -> None:
    with pytest.raises(ValueError, match="dp and distilled_on are for heads of one layer"):
        FewShotSettings(hidden=4, distilled_on=3)
