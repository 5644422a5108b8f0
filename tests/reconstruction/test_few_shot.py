"""The attack on heads whose images show, on heads that do not know them, and on sealed ones."""

import numpy as np
import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.decisions import head_from_decisions
from fl_sim.reconstruction.evidence import found_at, gaussian_heads, least_errors, roc, weigh
from fl_sim.reconstruction.few_shot import Attacker, attack_heads, learn
from fl_sim.reconstruction.ridge import fit_ridge, in_gauge
from fl_sim.sealing.heads import Linear, head_logits
from fl_sim.sealing.view import unread
from tests.reconstruction.heads_kit import CLASSES, SETTINGS, images, victims

VICTIMS = 40


def _attacker(**changed) -> Attacker:
    settings = SETTINGS.model_copy(update=changed)
    return learn(*images(900, seed=0), CLASSES, settings, Stream(0))


@pytest.fixture(scope="module")
def attacker() -> Attacker:
    return _attacker()


@pytest.fixture(scope="module")
def attacked() -> tuple[list[Linear], torch.Tensor]:
    return victims(VICTIMS)


def test_images_are_read_from_heads_in_clear(attacker, attacked) -> None:
    heads, originals = attacked
    recovered, evidence = attack_heads(attacker, heads, originals, 50, Stream(1))
    assert recovered.shape == (VICTIMS, CLASSES, 1, 8, 8)
    assert attacker.reconstructor.error < 0.5 * attacker.reconstructor.class_mean_error
    for strict in (False, True):
        share = evidence.true_positives(strict=strict)
        assert share.low < share.mean < share.high and share.mean > 0.5
        assert evidence.roc(strict).true_positives[-1] == 1
    assert evidence.identified.mean > 0.8 and evidence.chance == 1 / VICTIMS


def test_a_sealed_head_tells_no_more_than_the_null(attacker, attacked) -> None:
    _, originals = attacked
    shapes = {"head.weight": (CLASSES, 64), "head.bias": (CLASSES,)}
    stand_in = Linear(*unread(shapes).values())
    heads = [stand_in] * VICTIMS
    _, evidence = attack_heads(attacker, heads, originals, 50, Stream(1))
    assert evidence.true_positives().mean <= 0.03
    assert evidence.true_positives(strict=True).mean <= 0.03
    assert evidence.identified.mean <= 3 * evidence.chance


def test_the_null_against_itself_has_as_many_true_as_false_positives(attacker, attacked) -> None:
    _, originals = attacked
    first, second = (attacker.null(VICTIMS, Stream(seed)) for seed in (5, 6))
    evidence = weigh(first, second, originals)
    assert evidence.null.shape == (VICTIMS * VICTIMS, CLASSES)
    assert evidence.strict.shape == (VICTIMS * (VICTIMS - 1), CLASSES)
    assert evidence.true_positives().mean <= 0.04
    assert evidence.true_positives(strict=True).mean <= 0.04


def test_images_are_read_from_decisions(attacked) -> None:
    heads, originals = attacked
    attacker = _attacker(sees="decisions", questions=500)
    assert len(attacker.questions) == 500
    _, evidence = attack_heads(attacker, heads, originals, 50, Stream(1))
    assert evidence.true_positives().mean > 0.1
    assert evidence.identified.mean > 5 * evidence.chance


def test_of_several_images_a_class_the_mean_is_read(attacker) -> None:
    several = _attacker(images_per_class=3)
    assert several.shadows.rows.shape[1] == 9
    _, evidence = attack_heads(several, *victims(6, 3), 50, Stream(1))
    assert evidence.own.shape == (6, CLASSES)
    pixels = images(900, seed=0)[1]
    rows, seen = several.shadows.rows[-80:], several.shadows.weights(720, 800)
    means = pixels[torch.from_numpy(rows).long()].unflatten(1, (CLASSES, 3)).mean(dim=2)
    error = (several.reconstructor.reconstruct(seen) - means).square().mean()
    assert float(error) == pytest.approx(several.reconstructor.error, rel=0.1)
    assert several.reconstructor.class_mean_error < 0.6 * attacker.reconstructor.class_mean_error


def test_chunks_change_no_reconstructor(attacker) -> None:
    _, pixels, _ = images(900, seed=0)
    again = fit_ridge(attacker.shadows, pixels, size=37)
    assert again.penalty == attacker.reconstructor.penalty
    torch.testing.assert_close(again.mean, attacker.reconstructor.mean)
    heads = attacker.shadows.weights(0, 5)
    expected = attacker.reconstructor.reconstruct(heads)
    torch.testing.assert_close(again.reconstruct(heads), expected, atol=1e-3, rtol=0)


def test_the_ridge_knows_its_error_on_heads_that_it_was_not_fitted_to(attacker) -> None:
    _, pixels, _ = images(900, seed=0)
    rows, heads = attacker.shadows.rows[-80:], attacker.shadows.weights(720, 800)
    error = (attacker.reconstructor.reconstruct(heads) - pixels[rows]).square().mean()
    assert float(error) == pytest.approx(attacker.reconstructor.error, rel=0.1)


def test_the_gaussian_has_the_moments_of_the_shadow_heads(attacker) -> None:
    drawn = gaussian_heads(attacker.shadows, 4000, Stream(0)).flatten(1)
    heads = attacker.shadows.weights(0, 800).flatten(1)
    scale = heads.std(dim=0)
    assert ((drawn.mean(dim=0) - heads.mean(dim=0)) / scale).abs().max() < 0.1
    difference = drawn.T.cov() - heads.T.cov()
    assert (difference / scale / scale[:, None]).abs().max() < 0.1


def test_a_head_is_known_from_its_decisions_up_to_a_common_row_and_a_factor() -> None:
    features = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    head = Linear(torch.tensor([[1.0, 0, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, -1, 0, 1]]), None)
    decisions = head_logits((head,), features).argmax(dim=1)
    found = head_from_decisions(features, decisions, 3)
    true = torch.from_numpy(head.matrix()).float()
    close = in_gauge(torch.stack([found, true]), "decisions").flatten(1)
    assert float(close[0] @ close[1]) > 0.99
    two = head_from_decisions(features, (decisions == 0).long(), 4)
    assert not two[2:].any() and float(two[1, 0]) > 0 > float(two[0, 0])


def test_a_head_that_always_decides_the_same_is_refused() -> None:
    with pytest.raises(FlSimError, match="decided the same class for all images"):
        head_from_decisions(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), 3)


def test_a_head_of_another_shape_is_refused(attacker) -> None:
    with pytest.raises(FlSimError, match=r"The head is \[3, 6\], but the shadow heads are \[3, 65"):
        attacker.reconstruct(Linear(torch.zeros(3, 5), None))


def test_one_victim_and_images_without_labels_are_refused(attacker) -> None:
    with pytest.raises(FlSimError, match="there are 1 victims"):
        weigh(torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 1, 2, 2))
    features, pixels, labels = images(30, seed=0)
    with pytest.raises(FlSimError, match="30 features, 30 images and labels"):
        learn(features, pixels, labels[:4], CLASSES, SETTINGS, Stream(0))


def test_errors_and_shares_are_those_worked_out_by_hand() -> None:
    images_, originals = torch.zeros(1, 2, 1, 1, 1), torch.tensor([[[0.5, 0.2], [1.0, 3.0]]])
    errors = least_errors(images_, originals[..., None, None, None])
    np.testing.assert_allclose(errors, [[0.04, 1.0]], rtol=1e-6)
    null = np.arange(100) / 100
    assert found_at([[0.005, 0.02], [0.0, 0.5]], null).mean == 0.5  # below 0.01, as one in 100 is
    assert found_at([[0.0, 0.0]], null[:99]).mean == 0.0  # as few tell nothing of one in 100
    curve = roc([0.1, 0.3], [0.2, 0.4])
    assert curve.false_positives.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.true_positives.tolist() == [0, 0.5, 0.5, 1, 1]
