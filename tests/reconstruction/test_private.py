"""Private shadow heads against heads that are trained with DP-SGD, and other changed ones."""

import numpy as np
import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.privacy import DpSettings
from fl_sim.randomness import Stream
from fl_sim.reconstruction.arms import ARMS, settings_of
from fl_sim.reconstruction.changed import Averaged, Distilled, distillation
from fl_sim.reconstruction.few_shot import FewShotSettings, attack_heads, learn, victims_head
from fl_sim.reconstruction.private import Private, epsilon_of, private_of, train_private_head
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import Shadows, train_shadows, with_ones
from fl_sim.sealing.heads import HeadSettings, Linear, head_logits, train_head
from tests.reconstruction.heads_kit import CLASSES, HEAD, TASK, images, victims

SETTINGS = HeadSettings(epochs=12, learning_rate=0.2, weight_decay=0.05, init_std=0.01)
MANY = 1500


def _shadows(private: Private | None, heads: int = MANY, features=None) -> Shadows:
    """Heads of one and the same set, so that they differ by what is drawn alone."""
    known, _, labels = images(60, seed=0)
    rows = balanced_sets(labels, CLASSES, 1, 2, Stream(4)).repeat(heads, axis=0)
    features = with_ones(known) if features is None else features
    own = labels_of_sets(CLASSES, 2)
    return train_shadows(
        features, own, rows, CLASSES, SETTINGS, Stream(4), private=private, size=400
    )


def _trained_by_steps(shadows: Shadows, private: Private, heads: int) -> torch.Tensor:
    """The same by definition: clipped gradients and noise on all weights in every step."""
    generator = torch.Generator().manual_seed(7)
    own = shadows.features[torch.from_numpy(shadows.rows[0]).long()]
    target = torch.nn.functional.one_hot(torch.from_numpy(labels_of_sets(CLASSES, 2)), CLASSES)
    weights = shadows.initial(0, heads).clone()
    for _ in range(SETTINGS.epochs):
        wrong = torch.softmax(weights @ own.T, dim=1) - target.T
        gradients = torch.einsum("hcn,nd->hncd", wrong, own)
        norms = gradients.flatten(2).norm(dim=2)
        gradients *= (private.clip / norms).clamp_max(1.0)[:, :, None, None]
        noise = torch.randn(weights.shape, generator=generator)
        summed = gradients.sum(dim=1) + private.noise_multiplier * private.clip * noise
        step = summed / len(own) + SETTINGS.weight_decay * weights
        weights = weights - SETTINGS.learning_rate * step
    return weights


@pytest.mark.parametrize("clip", [0.05, 0.8])
def test_private_shadow_heads_are_distributed_as_trained_ones(clip: float) -> None:
    private = Private(0.7, clip)
    shadows = _shadows(private)
    found = shadows.weights(0, MANY).flatten(1)
    expected = _trained_by_steps(shadows, private, MANY).flatten(1)
    scale = expected.std(dim=0)
    assert ((found.mean(dim=0) - expected.mean(dim=0)) / scale).abs().max() < 0.2
    assert ((found.std(dim=0) / scale).log()).abs().max() < 0.12
    # Along directions that the features span, and along others.
    turns = torch.randn(40, found.shape[1], generator=torch.Generator().manual_seed(0))
    own = shadows.features[torch.from_numpy(shadows.rows[0]).long()]
    spanned = torch.einsum("kc,nd->kncd", torch.eye(CLASSES), own).reshape(-1, found.shape[1])
    for directions in (turns, spanned):
        ratio = (found @ directions.T).std(dim=0) / (expected @ directions.T).std(dim=0)
        assert ratio.log().abs().max() < 0.12


def test_without_noise_private_shadow_heads_only_clip() -> None:
    quiet, plain = _shadows(Private(1e-9, 1e3), 3), _shadows(None, 3)
    torch.testing.assert_close(quiet.weights(0, 3), plain.weights(0, 3), atol=1e-5, rtol=1e-4)


def test_heads_without_bias_get_no_noise_there() -> None:
    features = with_ones(images(60, seed=0)[0], bias=False)
    heads = _shadows(Private(1.0, 1.0), 5, features)
    assert not heads.weights(0, 5)[:, :, -1].any()


def test_an_owner_s_private_head_spends_what_is_asked_for() -> None:
    features, _, labels = images(12, seed=0)
    dp = DpSettings(target_epsilon=5.0, max_grad_norm=1.0, delta=0.05)
    head = train_private_head(features, torch.from_numpy(labels), TASK, SETTINGS, dp, Stream(0))
    again = train_private_head(features, torch.from_numpy(labels), TASK, SETTINGS, dp, Stream(0))
    assert torch.equal(head.weight, again.weight)
    assert 4.5 < epsilon_of(dp, SETTINGS) <= 5.0
    assert private_of(dp, SETTINGS).noise_multiplier > 1
    none = DpSettings(noise_multiplier=1e-9, max_grad_norm=1e3, delta=0.05)
    own = torch.from_numpy(labels)
    quiet = train_private_head(features, own, TASK, SETTINGS, none, Stream(0))
    plain, _ = train_head(features, own, TASK, SETTINGS, Stream(0))
    torch.testing.assert_close(quiet.weight, plain[0].weight, atol=1e-5, rtol=1e-4)
    assert (head.weight - plain[0].weight).abs().max() > 0.05


def test_means_are_of_hospitals_that_follow_each_other_with_all_their_images() -> None:
    features, _, labels = images(60, seed=0)
    rows = balanced_sets(labels, CLASSES, 7, 2, Stream(4))
    own = labels_of_sets(CLASSES, 2)
    shadows = train_shadows(with_ones(features), own, rows, CLASSES, SETTINGS, Stream(4))
    means = Averaged(shadows, 3)
    assert len(means) == 2 and means.rows.shape == (2, 18)
    expected = shadows.weights(3, 6).mean(dim=0)
    torch.testing.assert_close(means.weights(1, 2)[0], expected)
    assert (labels[means.rows] == labels_of_sets(CLASSES, 6)).all()
    assert set(means.rows[1]) == set(rows[3:6].ravel())


def test_a_student_answers_as_its_teacher_and_is_it_with_enough_images() -> None:
    generator = torch.Generator().manual_seed(1)
    known = with_ones(torch.randn(90, 64, generator=generator))
    teacher = torch.randn(1, CLASSES, 65, generator=torch.Generator().manual_seed(0))
    few, many = (teacher @ distillation(known[:count]) for count in (20, 90))
    answers = known[:20] @ teacher[0].T
    torch.testing.assert_close(known[:20] @ few[0].T, answers, atol=1e-2, rtol=1e-3)
    assert float((known[20:] @ (few - teacher)[0].T).abs().max()) > 0.1
    torch.testing.assert_close(many, teacher, atol=1e-2, rtol=1e-3)
    assert float(few.norm()) < float(teacher.norm())


def test_students_of_shadows_are_students_of_heads() -> None:
    known, _, labels = images(30, seed=0)
    settings = FewShotSettings(head=SETTINGS, distilled_on=8, images_per_class=10)
    head = victims_head(
        known, torch.from_numpy(labels), TASK, settings, Stream(3), public=known[:9]
    )
    plain, _ = train_head(known, torch.from_numpy(labels), TASK, SETTINGS, Stream(3))
    close = with_ones(known[:8])
    expected = head_logits(plain, known[:8])
    torch.testing.assert_close(head_logits(head, known[:8]), expected, atol=1e-3, rtol=1e-3)
    assert isinstance(Distilled(_shadows(None, 2), distillation(close)).weights(0, 1), torch.Tensor)


def test_a_student_needs_its_public_images() -> None:
    settings = FewShotSettings(shadows=20, head=HEAD, distilled_on=5)
    with pytest.raises(FlSimError, match="distilled_on is 5, but there are 0 public images"):
        learn(*images(60, seed=0), CLASSES, settings, Stream(0))


def test_noise_keeps_images_from_being_read() -> None:
    heads, originals = victims(30)
    settings = settings_of(
        "DP head, epsilon 10", FewShotSettings(shadows=800, head=HEAD), CLASSES, clip=1.0
    )
    assert settings.dp is not None and settings.dp.delta == pytest.approx(CLASSES**-1.1)
    attacker = learn(*images(900, seed=0), CLASSES, settings, Stream(0))
    features, _, labels = images(90, seed=9)
    rows = balanced_sets(labels, CLASSES, 30, 1, Stream(9))
    own = torch.from_numpy(labels_of_sets(CLASSES, 1))
    private: list[Linear] = [
        victims_head(features[row], own, TASK, settings, Stream(9).at(v))[0]
        for v, row in enumerate(rows)
    ]
    _, noisy = attack_heads(attacker, private, originals, 50, Stream(1))
    clear = learn(*images(900, seed=0), CLASSES, FewShotSettings(shadows=800, head=HEAD), Stream(0))
    _, plain = attack_heads(clear, heads, originals, 50, Stream(1))
    assert noisy.identified.mean < 0.5 * plain.identified.mean
    assert np.median(noisy.own) > np.median(plain.own)


def test_every_arm_has_settings_and_a_wrong_one_a_hint() -> None:
    for name, arm in ARMS.items():
        settings = settings_of(name, FewShotSettings(), 7)
        assert (settings.dp is not None) is (arm.epsilon is not None)
        assert arm.without_head is (arm.sealed and settings.sees == "weights")
    with pytest.raises(FlSimError, match=r"no arm called 'clear haed'. Did you mean 'clear head'"):
        settings_of("clear haed", FewShotSettings(), 7)
