"""Ensemble distillation: how answers become one, what one upload moves, and what it costs."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.defenses.base import DEFENSES, DefenseReport, Release
from fl_sim.defenses.ensemble_distillation import (
    Ensemble,
    EnsembleDistillationSettings,
    ballots,
    combined,
    noisy_top,
)
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.privacy import gaussian_epsilon
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import predict
from tests.defenses.defense_kit import SPEC, TASK, apply, held_out, release_of

State = dict[str, torch.Tensor]
NAME = "ensemble_distillation"
SHORT: dict[str, Any] = {"steps": 4, "batch_size": 8}
SEVERAL = Task(MULTI_LABEL, ("a", "b", "c"))


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def _upload(seed: int, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> State:
    state = state_of(build(SPEC, seed))
    return {name: change(value) if change else value for name, value in state.items()}


def _student(uploads: list[State], **settings: Any) -> tuple[State, DefenseReport]:
    release = release_of(uploads=uploads)
    report, _ = apply(NAME, release, **SHORT | settings)
    return state_of(release.model), report


def _equal(one: State, two: State) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# ------------------------------------------------------------------------ answers become one


@pytest.mark.parametrize("task", [TASK, SEVERAL])
@pytest.mark.parametrize("wild", ["large", "small", "infinite", "nan", "opposite"])
def test_the_median_of_three_equal_answers_and_a_wild_one_is_exactly_theirs(task, wild) -> None:
    honest = _logits(5, 3)
    other = {
        "large": torch.full_like(honest, 1e29),
        "small": torch.tensor([1e9, -1e9, 0.0]).expand_as(honest),
        "infinite": torch.full_like(honest, math.inf),
        "nan": torch.full_like(honest, math.nan),
        "opposite": -100 * honest,
    }[wild]
    alone = combined(honest[None], "median", task)
    for place in range(4):
        answers = [honest] * 3
        answers.insert(place, other)
        assert torch.equal(combined(torch.stack(answers), "median", task), alone)


def test_the_median_is_of_log_probabilities_and_a_distribution() -> None:
    answers = _logits(5, 6, 3)
    given = combined(answers, "median", TASK)
    middle = np.median(answers.log_softmax(2).numpy(), axis=0)
    shares = np.exp(middle) / np.exp(middle).sum(1, keepdims=True)
    np.testing.assert_allclose(given.exp(), shares, rtol=1e-5)
    even = combined(answers[:4], "median", SEVERAL)
    np.testing.assert_allclose(even, np.median(answers[:4].numpy(), axis=0), rtol=1e-5)


@pytest.mark.parametrize("uploads", [3, 4, 5])
def test_one_upload_moves_the_median_within_what_the_others_say_and_the_mean_anywhere(
    uploads: int,
) -> None:
    honest = _logits(uploads - 1, 50, 3, seed=1)
    for size in (1.0, 100.0, 1e6):
        answers = torch.cat([honest, size * _logits(1, 50, 3, seed=2)])
        middle = combined(answers, "median", SEVERAL)
        assert (middle >= honest.amin(0)).all() and (middle <= honest.amax(0)).all()
    assert not (combined(answers, "mean", SEVERAL) <= honest.amax(0)).all()


@pytest.mark.parametrize("combine", ["mean", "median"])
def test_an_answer_that_is_no_number_has_no_say_and_none_at_all_is_nan(combine: Any) -> None:
    answers = _logits(3, 4, 3)
    broken = answers.clone()
    broken[1, 2, 0] = math.nan
    broken[1, 3] = 1e31
    given, others = combined(broken, combine, TASK), combined(answers[[0, 2]], combine, TASK)
    assert torch.equal(given[2:], others[2:])
    assert torch.equal(given[:2], combined(answers, combine, TASK)[:2])
    broken[:, 0] = math.inf
    assert combined(broken, combine, TASK)[0].isnan().all()


def test_the_median_of_a_segmentation_is_by_pixel() -> None:
    task = Task(SEGMENTATION, ("background", "a", "b"))
    answers = _logits(3, 2, 3, 4, 4)
    flat = answers.permute(0, 1, 3, 4, 2).reshape(3, -1, 3)
    given = combined(answers, "median", task).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(given, combined(flat, "median", TASK))


def test_ballots() -> None:
    answers = torch.tensor([[1.0, 3.0, 2.0], [1.0, -1.0, math.nan], [0.0, math.inf, 1.0]])
    assert ballots(answers, TASK).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert ballots(answers, SEVERAL)[:, 1].tolist() == [[1, 1, 1], [1, 0, 0], [0, 1, 1]]
    assert (ballots(answers, SEVERAL).sum(1) == 1).all()
    pixels = ballots(_logits(2, 3, 4, 4), Task(SEGMENTATION, ("background", "a", "b")))
    assert pixels.shape == (2, 3, 4, 4) and (pixels.sum(1) == 1).all()


# --------------------------------------------------------------------------------- students


def test_a_wild_upload_of_four_leaves_the_student_of_three_equal_ones_as_it_is() -> None:
    honest = _upload(1)
    alone, _ = _student([honest], combine="median")
    wild = _upload(9, lambda value: value * 4 if value.is_floating_point() else value)
    uploads = [honest, honest, wild, honest]
    answers = Ensemble(release_of(uploads=[wild])).together(torch.ones(1, 1, 16, 16), "mean")
    assert answers.isfinite().all() and answers.abs().max() > 10  # it has a say
    assert _equal(_student(uploads, combine="median")[0], alone)
    assert not _equal(_student(uploads, combine="mean")[0], alone)


def test_one_vote_of_four_is_a_quarter_whatever_it_says() -> None:
    honest = _upload(1)
    unanimous = Ensemble(release_of(uploads=[honest] * 4)).votes()
    assert unanimous.amax(1).tolist() == [4.0] * 40
    for change in (lambda value: value * 1e6, lambda value: value * math.nan):
        wild = _upload(9, lambda v, c=change: c(v) if v.is_floating_point() else v)  # type: ignore[misc]
        votes = Ensemble(release_of(uploads=[honest, wild, honest, honest])).votes()
        assert (votes.sum(1) == 4).all()
        assert ((votes - unanimous).abs() <= 1).all() and (
            votes.argmax(1) == unanimous.argmax(1)
        ).all()


@pytest.mark.parametrize("combine", ["median", "vote"])
def test_the_order_of_uploads_does_not_matter(combine: str) -> None:
    uploads = [_upload(seed) for seed in range(3)]
    students = [
        _student([uploads[i] for i in o], combine=combine)[0] for o in ((0, 1, 2), (2, 0, 1))
    ]
    assert _equal(*students)


@pytest.mark.parametrize("labels", [0.0, 0.5, 1.0])
def test_the_mean_of_one_upload_is_consistent_distillation_bit_for_bit(labels: float) -> None:
    upload = _upload(5)
    ensemble, report = _student([upload], combine="mean", labels=labels)
    release = release_of()
    release.model.load_state_dict(upload)
    usual, _ = apply("consistent_distillation", release, **SHORT, labels=labels)
    assert _equal(ensemble, state_of(release.model))
    assert [epoch["loss"] for epoch in report.epochs] == [epoch["loss"] for epoch in usual.epochs]
    assert report.cap_bits == usual.cap_bits


def test_the_aggregate_and_further_entries_do_not_reach_the_student() -> None:
    uploads = [_upload(seed) for seed in (1, 2, 3)]
    students = []
    for seed in (4, 5):
        release = release_of(uploads=uploads, entries={"payload": torch.ones(3)})
        release.model.load_state_dict(_upload(seed))
        apply(NAME, release, **SHORT)
        assert not release.entries
        students.append(state_of(release.model))
    assert _equal(*students)


def _taught(images: Split, shift: int) -> State:
    """A network that answers each label's successor by so many."""
    model = build(SPEC, shift)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    pixels, labels = images.tensors()
    for _ in range(40):
        optimizer.zero_grad()
        TASK.loss(model(pixels * 2 - 1), (labels + shift) % 3).backward()
        optimizer.step()
    return state_of(model)


@pytest.mark.parametrize("combine", ["median", "vote"])
def test_the_student_learns_what_most_answer(combine: str) -> None:
    images = held_out()
    right, wrong = _taught(images, 0), _taught(images, 1)
    release = release_of(uploads=[right, wrong, right])
    apply(NAME, release, steps=120, batch_size=16, combine=combine, labels=0.0, mixup=0.5)
    answers = predict(release.model, images, TASK).argmax(1)
    assert (answers == torch.from_numpy(images.labels)).float().mean() > 0.9


@pytest.mark.parametrize("combine", ["median", "vote"])
@pytest.mark.parametrize("kind", [MULTI_LABEL, SEGMENTATION])
def test_other_tasks(kind: str, combine: str) -> None:
    images, spec = held_out(12), SPEC
    names: tuple[str, ...] = ("a", "b", "c")
    if kind == MULTI_LABEL:
        images = Split(images.images, np.eye(3, dtype=np.int64)[images.labels])
    else:
        images = Split(images.images, (images.images[..., 0] > 90).astype(np.uint8))
        spec = ModelSpec(name="unet", channels=1, size=16, classes=2, task="segmentation")
        names = ("background", "bright")
    uploads = [state_of(build(spec, seed)) for seed in (1, 2, 3)]
    release = Release(build(spec), spec, images, Task(kind, names), Stream(0), uploads=uploads)
    report, before = apply(NAME, release, combine=combine, **SHORT)
    assert all(math.isfinite(epoch["loss"]) for epoch in report.epochs)
    assert not _equal(before, state_of(release.model))
    if combine == "vote":
        questions = 12 * (3 if kind == MULTI_LABEL else 256)
        assert report.cap_bits == pytest.approx(questions * 2)  # 4 counts of three votes
        assert report.figures["cap_bytes_of_one"] == questions / 8


# ------------------------------------------------------------------------- caps and privacy


def test_the_cap_is_of_all_votes_and_of_one() -> None:
    uploads = [_upload(seed) for seed in range(4)]
    _, report = _student(uploads, combine="vote")
    assert report.cap_bits == pytest.approx(40 * math.log2(math.comb(6, 2)))
    assert report.figures == {"cap_bytes_of_one": pytest.approx(40 * math.log2(3) / 8)}
    assert report.zcdp is None
    _, alone = _student(uploads[:1], combine="vote")
    assert alone.cap_bits == pytest.approx(40 * math.log2(3))
    _, noised = _student(uploads, combine="vote", noise=2.0)
    assert noised.cap_bits == pytest.approx(40 * math.log2(3))
    for combine in ("mean", "median"):
        assert _student(uploads, combine=combine)[1].cap_bits is None
    for changes in ({"combine": "median"}, {"combine": "vote", "noise": 1.0}):
        _, report = _student(uploads, labels=1.0, **changes)
        assert report.cap_bits == 0
        assert report.figures == ({"pate_epsilon": 0.0} if "noise" in changes else {})


def test_the_epsilon_is_that_of_gnmax_for_every_image() -> None:
    _, report = _student([_upload(seed) for seed in range(3)], combine="vote", noise=40.0)
    # Proposition 8 of Papernot et al. 2018: alpha / noise^2 a question; Mironov 2017 to epsilon.
    orders = np.arange(1.1, 64, 0.1)
    classic = (40 * orders / 40.0**2 + math.log(1e5) / (orders - 1)).min()
    epsilon = report.figures["pate_epsilon"]
    assert 0.7 * classic < epsilon <= classic
    assert report.zcdp == pytest.approx(40 / 40.0**2)


def test_epsilon_of_gaussian_noise_has_its_ends() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    spent = [gaussian_epsilon(rho, 1e-5) for rho in (1e-4, 1e-2, 1.0, 100.0)]
    assert spent == sorted(spent) and spent[0] > 0 and 100 < spent[-1] < 200


def test_noise_on_votes_is_of_its_deviation_and_one_answer_an_image_is_learned() -> None:
    counts = torch.tensor([[3.0, 1.0]]).expand(20000, 2)
    top = noisy_top(counts, 2.0, Stream(0))
    assert (top.sum(1) == 1).all()
    # The difference of the counts is 2, that of the noises has deviation 2 * sqrt(2).
    expected = 0.5 * (1 + math.erf(2 / (2 * math.sqrt(2)) / math.sqrt(2)))
    assert float(top[:, 0].mean()) == pytest.approx(expected, abs=0.01)
    assert noisy_top(counts, 1e-6, Stream(0))[:, 0].all()
    assert not torch.equal(top, noisy_top(counts, 2.0, Stream(1)))


def test_secret_noise_is_not_drawn_from_the_seed() -> None:
    uploads = [_upload(seed) for seed in range(3)]
    chosen = {"combine": "vote", "noise": 5.0}
    again = [_student(uploads, **chosen)[0] for _ in range(2)]
    assert _equal(*again)
    assert not _equal(again[0], _student(uploads, **chosen, secret=True)[0])


# --------------------------------------------------------------------------------- problems


def test_without_uploads_one_sentence_says_what_to_do() -> None:
    uploads: Any
    for uploads in (None, []):
        with pytest.raises(FlSimError, match=r"hospitals' uploads.*consistent_distillation\.$"):
            apply(NAME, release_of(uploads=uploads))


def test_only_the_first_step_of_a_chain_is_given_the_uploads() -> None:
    chosen = {"name": NAME, "combine": "vote", "noise": 1.0, **SHORT}
    release = release_of(uploads=[_upload(1), _upload(2)])
    report, _ = apply("chain", release, steps=[chosen, {"name": "random_bits", "bits": 4}])
    assert report.cap_bits == pytest.approx(40 * math.log2(3)) and report.zcdp == 40
    with pytest.raises(FlSimError, match="first"):
        apply("chain", release_of(uploads=[_upload(1)]), steps=["random_bits", chosen])
    settings = parse(DEFENSES.get("chain").Settings, {"steps": [chosen]}, "[defense]")
    assert DEFENSES.get("chain")(settings).needs_uploads


def test_answers_of_nobody_are_one_sentence() -> None:
    broken = _upload(1, lambda v: v * math.nan if v.is_floating_point() else v)
    for combine in ("mean", "median"):
        with pytest.raises(FlSimError, match="not finite"):
            _student([broken, broken], combine=combine)
    state, _ = _student([broken, broken], combine="vote")
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_noise_needs_votes() -> None:
    with pytest.raises(FlSimError, match="vote"):
        parse(EnsembleDistillationSettings, {"noise": 1.0}, "[defense]")
