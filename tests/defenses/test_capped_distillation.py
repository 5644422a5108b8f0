"""Capped distillation: no teacher passes more than the budget, and the budget can be spent."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.artifact import artifact_bytes
from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.defenses import capped_distillation
from fl_sim.defenses.base import Release
from fl_sim.defenses.capped_distillation import Questions, code_book, coded
from fl_sim.defenses.ledger import coded_answers_bits
from fl_sim.defenses.loops.distil import distil
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import predict
from tests.defenses.defense_kit import SPEC, TASK, apply, held_out, release_of

NAME = "capped_distillation"
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 8}


def _questions(images: int, classes: int = 3, seed: int = 0) -> Questions:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, images)
    return Questions(generator.dirichlet(np.ones(classes), images), true, true)


def _lies(count: int, images: int, classes: int = 3) -> list[torch.Tensor]:
    """Answers of models that were made to speak: sure, unsure, of every kind, or no numbers."""
    generator = np.random.default_rng(1)
    kinds = [np.eye(classes)[generator.integers(0, classes, (count, images))]]
    kinds += [generator.dirichlet(np.full(classes, a), (count, images)) for a in (0.1, 1.0, 10.0)]
    odd = generator.choice([np.nan, np.inf, -1.0, 1e30], (count, images, classes))
    kinds.append(np.where(generator.random((count, images, 1)) < 0.5, odd, kinds[2]))
    return [torch.from_numpy(answers) for kind in kinds for answers in kind]


def _different(targets: list[np.ndarray]) -> float:
    """Bits that a receiver reads who sees the very targets: these differ, or they do not."""
    return math.log2(len({np.ascontiguousarray(t).tobytes() for t in targets}))


class _Speaking:
    """A network's place, taken by one that answers what it wants to each image, by its place.

    Whoever asks again is answered anew.
    """

    def __init__(self, chances: torch.Tensor) -> None:
        self._logits, self._asked = chances.log(), 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self._asked += 1
        return self._logits.roll(self._asked - 1, 0)[: len(pixels)].float()


def _spoken(release: Release, chances: torch.Tensor) -> Release:
    release.model.forward = _Speaking(chances)
    return release


# ------------------------------------------------------------------ the coder alone


@pytest.mark.parametrize("bits", [1, 2])
def test_no_teacher_makes_the_coder_say_more_than_is_counted(bits: int) -> None:
    questions = _questions(60)
    asked = questions.least_sure()[:4]
    books = questions.books(2**bits, seed=0)
    stored = [questions.stored(asked, answers, books) for answers in _lies(400, len(asked))]
    cap = coded_answers_bits(len(asked), 2**bits)
    assert cap - 1 < _different(stored) <= cap
    for place in range(len(asked)):
        assert len({tuple(s[place]) for s in stored}) <= 2**bits


def test_a_coder_that_asks_twice_says_more_than_is_counted() -> None:
    # The measurement above can fail: a mean of two answers is one of 10 values, and not of 4.
    questions = _questions(60)
    asked = questions.least_sure()[:4]
    lies, books = _lies(400, len(asked)), questions.books(4, seed=0)
    twice = [
        questions.stored(asked, one, books) + questions.stored(asked, other, books)
        for one, other in zip(lies, reversed(lies), strict=True)
    ]
    assert _different(twice) > coded_answers_bits(len(asked), 4)


def test_a_teacher_that_knows_the_code_books_spends_every_bit() -> None:
    questions = _questions(60)
    asked = questions.least_sure()[:8]
    books = questions.books(4, seed=0)
    generator = np.random.default_rng(2)
    for _ in range(20):
        message = generator.integers(0, 4, len(asked))
        said = [books[questions.true[q]][m] for q, m in zip(asked, message, strict=True)]
        stored = questions.stored(asked, torch.from_numpy(np.array(said)), books)
        read = [
            int(np.abs(books[questions.true[q]] - s).sum(1).argmin())
            for q, s in zip(asked, stored, strict=True)
        ]
        assert read == message.tolist()


def test_an_answer_is_stored_as_the_nearest_codeword() -> None:
    book = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    answers = np.array([[0.8, 0.2], [0.45, 0.55], [0.0, 1.0], [np.nan, 0.5], [2.0, -1.0]])
    own = np.tile([0.1, 0.9], (5, 1))
    assert coded(answers, book, own).tolist() == [0, 1, 2, 2, 2]


def test_code_books_are_answers_of_the_owners_own() -> None:
    chances = np.random.default_rng(0).dirichlet(np.ones(4), 200)
    book = code_book(chances, 8, 0)
    assert book.shape == (8, 4)
    np.testing.assert_allclose(book.sum(1), 1)
    nearest = np.sqrt(chances) @ np.sqrt(book).T
    assert nearest.max(1).mean() > 0.97  # and one codeword reaches 0.88
    few = code_book(np.array([[0.25, 0.75], [0.25, 0.75]]), 8, 0)
    np.testing.assert_allclose(few, [[0.25, 0.75]])


def test_questions_are_asked_where_the_owner_is_least_sure() -> None:
    own = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.0, 1.0]])
    questions = Questions(own, np.array([0, 0, 1, 0]), np.array([0, 0, 1, 0]))
    assert questions.least_sure().tolist() == [2, 1, 0, 3]  # the last one is wrong, and sure


# ------------------------------------------------------------------ the whole defence


@pytest.mark.parametrize(
    ("budget", "bits", "asked", "cap"),
    [
        (0, 2, 0, 0),
        (1, 2, 4, 8),
        (2, 3, 5, 15),
        (1, 12, 0, 0),
        (1000, 3, 40, 120),
        (1, None, 2, 8),
        (31, None, 40, 240),
        (1000, None, 40, 320),
    ],
)
def test_a_budget_is_never_exceeded(budget: int, bits: int | None, asked: int, cap: int) -> None:
    report, _ = apply(NAME, release_of(), budget=budget, bits=bits, **SHORT)
    assert report.cap_bits == cap <= 8 * budget
    assert report.figures["questions_asked"] == asked


def test_no_more_students_can_leave_than_the_cap_has_values() -> None:
    # Of 4 images, 1 bit each: whatever a teacher does, one of 16 students leaves; and most do.
    few = held_out(4)
    alike = Split(few.images, np.zeros_like(few.labels))
    leaving = set()
    for chances in _lies(12, 4):
        release = _spoken(replace(release_of(), held_out=alike), chances)
        report, _ = apply(NAME, release, budget=1, bits=1, steps=1, batch_size=4)
        assert report.cap_bits == 4
        state = state_of(release.model)
        leaving.add(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
    assert 12 <= len(leaving) <= 16


def test_nothing_but_the_codewords_reaches_the_student() -> None:
    chances = torch.full((40, 3), 1 / 3)
    states = []
    for damage in (0.0, 0.7, math.nan):
        release = _spoken(release_of(entries={"payload": torch.full((9,), damage)}), chances)
        with torch.no_grad():
            for parameter in release.model.parameters():
                parameter.add_(damage)
        apply(NAME, release, **SHORT)
        assert not release.entries
        states.append(state_of(release.model))
    for other in states[1:]:
        assert all(torch.equal(states[0][name], value) for name, value in other.items())


def test_a_model_whose_answers_are_no_numbers_ends_nothing() -> None:
    release = release_of()
    with torch.no_grad():
        next(release.model.parameters()).fill_(math.nan)
    report, _ = apply(NAME, release, bits=2, **SHORT)
    assert all(bool(p.isfinite().all()) for p in release.model.parameters())
    assert report.cap_bits == 80


def test_without_a_budget_labels_alone_are_learned_bit_for_bit() -> None:
    states = []
    for name, settings in ((NAME, {"budget": 0}), ("consistent_distillation", {"labels": 1.0})):
        release = release_of()
        report, _ = apply(name, release, **settings, **SHORT)
        assert report.cap_bits == 0
        states.append(state_of(release.model))
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_teacher_that_knows_better_than_the_labels_is_heard() -> None:
    # A third of the labels is wrong; the teacher knows which, and the budget pays for all.
    split = held_out(60)
    wrong = np.arange(60) % 3 == 0
    given = Split(split.images, np.where(wrong, (split.labels + 1) % 3, split.labels))
    chances = torch.from_numpy(np.eye(3)[split.labels] * 0.94 + 0.02)
    recipe = {"steps": 120, "batch_size": 20, "learning_rate": 5e-3, "mixup": 0.0, "bits": 3}
    found = {}
    for budget in (0, 100):
        release = _spoken(replace(release_of(), held_out=given), chances)
        apply(NAME, release, budget=budget, labels=0.0, **recipe)
        del release.model.forward
        with torch.no_grad():
            answers = release.model.eval()(split.tensors()[0] * 2 - 1).argmax(1).numpy()
        found[budget] = float((answers == split.labels).mean())
    assert found[100] > found[0] + 0.05


def test_the_owners_own_students_answer_what_they_have_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Release] = []
    answered: list[tuple[Any, Split]] = []

    def learned(release: Release, *args: Any, **more: Any) -> Any:
        seen.append(release)
        return distil(release, *args, **more)

    def asked(model: Any, images: Split, task: Task) -> torch.Tensor:
        answered.append((model, images))
        return predict(model, images, task)

    monkeypatch.setattr(capped_distillation, "distil", learned)
    monkeypatch.setattr(capped_distillation, "predict", asked)
    release = release_of(entries={"payload": torch.zeros(9)})
    release = replace(release, reference=state_of(build(SPEC, 5)))
    apply(NAME, release, budget=1, **SHORT)
    everything = sorted(image.tobytes() for image in release.held_out.images)
    for own, (model, images) in zip(seen[:2], answered[:2], strict=True):
        assert own.model is model is not release.model
        assert own.reference is None and own.entries == {} and own.evaluate is None
        halves = (*own.held_out.images, *images.images)
        assert sorted(image.tobytes() for image in halves) == everything
    # The model that came is asked once, about all images, and after the books were made.
    assert [model is release.model for model, _ in answered] == [False, False, True]
    assert answered[2][1] is release.held_out and len(seen) == 3


def test_of_several_labels_an_image_each_one_is_a_question() -> None:
    split = held_out()
    several = Split(split.images, np.eye(3, dtype=np.int64)[split.labels])
    task = Task(MULTI_LABEL, TASK.label_names)
    release = replace(release_of(), held_out=several, task=task)
    before = state_of(release.model)
    report, _ = apply(NAME, release, budget=1000, bits=2, **SHORT)
    assert report.figures["questions_asked"] == 120 and report.cap_bits == 240
    assert any(not torch.equal(before[n], t) for n, t in state_of(release.model).items())


def test_targets_are_labels_where_nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[torch.Tensor] = []

    def noted(*args: Any, targets: torch.Tensor | None = None) -> Any:
        learned.extend([] if targets is None else [targets])
        return distil(*args, targets=targets)  # type: ignore[misc]

    monkeypatch.setattr(capped_distillation, "distil", noted)
    release = release_of()
    apply(NAME, release, budget=1, bits=2, **SHORT)
    labels = np.eye(3)[release.held_out.labels]
    changed = (learned[0].numpy() != labels).any(1)
    assert 1 <= changed.sum() <= 4
    np.testing.assert_allclose(learned[0].sum(1), 1, atol=1e-6)


def test_a_secret_is_not_told_by_the_scenario_nor_by_what_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaves(**more: Any) -> tuple[bytes, str]:
        release = release_of()
        report, _ = apply(NAME, release, **SHORT, **more)
        said = {**asdict(report), "seconds": 0.0}
        return artifact_bytes(SPEC, state_of(release.model)), json.dumps(said)

    assert leaves()[0] == leaves()[0]
    assert leaves(secret=True)[0] != leaves(secret=True)[0]
    drawn = 5_124_095_575_370_701_057
    monkeypatch.setattr("secrets.randbits", lambda bits: drawn)
    one, report = leaves(secret=True)
    assert str(drawn).encode() not in one and drawn.to_bytes(8, "little") not in one
    assert str(drawn) not in report
    other = replace(release_of(), stream=Stream(drawn))
    apply(NAME, other, **SHORT)
    assert artifact_bytes(SPEC, state_of(other.model)) == one  # whoever knew it could repeat it


def test_problems_are_one_sentence() -> None:
    with pytest.raises(FlSimError, match="4 held-out images"):
        apply(NAME, release_of(count=3), **SHORT)
    masks = Split(held_out().images, (held_out().images[..., 0] > 90).astype(np.uint8))
    spec = ModelSpec(name="unet", channels=1, size=16, classes=2, task="segmentation")
    task = Task(SEGMENTATION, ("background", "bright"))
    release = Release(build(spec), spec, masks, task, Stream(0))
    with pytest.raises(FlSimError, match="every pixel"):
        apply(NAME, release, **SHORT)
    assert apply(NAME, release, budget=0, **SHORT)[0].cap_bits == 0
