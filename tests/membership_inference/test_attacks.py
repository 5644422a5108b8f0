"""The attacks, against implementations of their own in plain NumPy, image by image."""

import math

import numpy as np
import pytest
from scipy import stats

from fl_sim.errors import FlSimError
from fl_sim.membership_inference import lira
from fl_sim.membership_inference.base import METHODS, MODES, MembershipSettings, mean_over
from fl_sim.membership_inference.infer import infer
from fl_sim.membership_inference.lira import Lira
from fl_sim.membership_inference.references import References, half
from fl_sim.membership_inference.rmia import UNCHOSEN, Rmia, chosen_a, offline_average

IMAGES, MEMBERS, MODELS = 60, 35, 8
EVERY = [(name, mode) for name in METHODS.names() for mode in MODES]


def _answers(
    models: int = MODELS, images: int = IMAGES, members: int = MEMBERS, gap: float = 2.0
) -> tuple[np.ndarray, References, np.ndarray]:
    """Log-odds that rise by a gap where an image was trained on; target, references, fresh."""
    draw = np.random.default_rng(0)
    included = np.stack([half(images, number) for number in range(models)])
    hardness = draw.normal(0, 2, images)
    odds = hardness + gap * included + draw.normal(0, 0.7, (models, images))
    fresh = np.arange(images) >= members
    target = hardness + gap * ~fresh + draw.normal(0, 0.7, images)
    return target, References(odds, included), fresh


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def _ratio(target: np.ndarray, known: References, image: int, a: float | None) -> float:
    """``p(x | target) / p(x)`` of one image: RMIA's equation, from the paper."""
    own = [_probability(value) for value in known.odds[:, image]]
    seen = [p for p, there in zip(own, known.included[:, image], strict=True) if there]
    unseen = [p for p, there in zip(own, known.included[:, image], strict=True) if not there]
    out = sum(unseen) / len(unseen)
    average = 0.5 * (sum(seen) / len(seen) + out)
    if a is not None:
        average = 0.5 * ((1 + a) * out + (1 - a))
    return _probability(target[image]) / average


@pytest.mark.parametrize("a", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [1.0, 1.3, 2.0])
def test_rmia_is_the_share_of_fresh_images_that_are_beaten_by_a_factor(
    a: float | None, gamma: float
) -> None:
    target, known, fresh = _answers()
    scores = Rmia("online" if a is None else "offline", a=a, gamma=gamma).score(
        target, known, fresh
    )
    ratios = [_ratio(target, known, image, a) for image in range(IMAGES)]
    for image in range(IMAGES):
        others = [other for other in range(MEMBERS, IMAGES) if other != image]
        beaten = sum(ratios[image] / ratios[other] >= gamma for other in others)
        assert scores.risk[image] == pytest.approx(beaten / len(others))
    np.testing.assert_allclose(scores.order, np.log(ratios), rtol=1e-9)


def _log_density(value: float, mean: float, deviation: float) -> float:
    return float(stats.norm(mean, deviation).logpdf(value))


@pytest.mark.parametrize("own", [False, True])
def test_lira_is_the_likelihood_ratio_of_two_normal_distributions(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lira, "OWN_VARIANCE", MODELS if own else MODELS + 1)
    target, known, fresh = _answers()
    parts = []
    for image in range(IMAGES):
        values = known.odds[:, image]
        there = known.included[:, image]
        parts.append((values[there], values[~there]))
    pooled = [
        math.sqrt(
            sum(((part[side] - part[side].mean()) ** 2).sum() for part in parts)
            / sum(len(part[side]) - 1 for part in parts)
        )
        for side in (0, 1)
    ]
    online = Lira("online").score(target, known, fresh)
    offline = Lira("offline").score(target, known, fresh)
    for image, sides in enumerate(parts):
        deviations = [side.std(ddof=1) for side in sides] if own else pooled
        means = [side.mean() for side in sides]
        ratio = _log_density(target[image], means[0], deviations[0]) - _log_density(
            target[image], means[1], deviations[1]
        )
        assert online.order[image] == pytest.approx(ratio)
        below = float(stats.norm(means[1], deviations[1]).cdf(target[image]))
        assert offline.risk[image] == pytest.approx(below)


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_a_risk_never_falls_where_the_order_rises(name: str, mode: str) -> None:
    target, known, fresh = _answers()
    scores = METHODS.get(name)(mode).score(target, known, fresh)
    for which in (fresh, ~fresh):
        assert (np.diff(scores.risk[which][np.argsort(scores.order[which])]) >= 0).all()
    assert scores.risk.min() >= 0 and scores.risk.max() <= 1


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_members_are_found_where_training_shows_and_not_where_it_does_not(
    name: str, mode: str
) -> None:
    settings = MembershipSettings.model_validate({"name": name, "mode": mode})
    images, members = 3000, 1500
    strong = infer(*_answers(16, images, members, gap=4.0)[:2], members, settings)
    none = infer(*_answers(16, images, members, gap=0.0)[:2], members, settings)
    assert strong.auc > 0.9 and strong.tpr(0.01) > 0.3
    assert none.auc == pytest.approx(0.5, abs=0.03) and none.tpr(0.01) < 0.025
    assert none.auc_interval.low < 0.5 < none.auc_interval.high


@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_random_membership_is_not_found(name: str, mode: str) -> None:
    """The answers are those of a network that learned by heart, the labels of membership a draw."""
    target, known, _ = _answers(16, 3000, 1500, gap=4.0)
    settings = MembershipSettings.model_validate({"name": name, "mode": mode})
    order = np.random.default_rng(1).permutation(3000)
    found = infer(target[order], known.of(order), 1500, settings)
    assert found.auc == pytest.approx(0.5, abs=0.03) and found.tpr(0.01) < 0.025


def test_the_offline_share_is_chosen_by_the_reference_models_alone() -> None:
    target, known, fresh = _answers(images=400, members=200)
    a = chosen_a(known)
    assert 0 <= a <= 1
    told = Rmia("offline").score(target, known, fresh)
    stated = Rmia("offline", a=a).score(target, known, fresh)
    np.testing.assert_array_equal(told.order, stated.order)
    # Where models with an image are like those without it, the mean over these is p(x) itself.
    alike = References(known.odds, known.included)
    out = mean_over(1 / (1 + np.exp(-alike.odds)), ~alike.included)
    np.testing.assert_allclose(offline_average(alike, 1.0), out)
    few = References(known.odds[:2], known.included[:2])
    assert chosen_a(few) == UNCHOSEN


def test_offline_attacks_never_look_at_models_with_the_image() -> None:
    target, known, fresh = _answers()
    other = References(np.where(known.included, 99.0, known.odds), known.included)
    for method in (Rmia("offline", a=0.5), Lira("offline")):
        before, after = (method.score(target, one, fresh) for one in (known, other))
        np.testing.assert_array_equal(before.order, after.order)
        np.testing.assert_array_equal(before.risk, after.risk)


def test_what_cannot_be_attacked_is_refused() -> None:
    target, known, _ = _answers(models=2)
    with pytest.raises(FlSimError, match="'lira' needs 4 reference models"):
        infer(target, known, MEMBERS, MembershipSettings(name="lira"))
    with pytest.raises(FlSimError, match="Did you mean 'rmia'"):
        infer(target, known, MEMBERS, MembershipSettings(name="rmai"))
    with pytest.raises(FlSimError, match="60 are members"):
        infer(target, known, IMAGES)
    with pytest.raises(FlSimError, match="no finite number"):
        infer(np.full(IMAGES, np.nan), known, MEMBERS)
    with pytest.raises(FlSimError, match="answers 59 images"):
        infer(target[:-1], known, MEMBERS)
    one_sided = References(known.odds, np.zeros_like(known.included))
    with pytest.raises(FlSimError, match="trained with it"):
        infer(target, one_sided, MEMBERS)
