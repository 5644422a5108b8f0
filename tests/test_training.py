"""Ordinary training, registries and derived randomness."""

import itertools

import numpy as np
import pytest
import torch

from fl_sim.data.base import NO_ANSWER, SEGMENTATION, Split, Task, predicted_masks
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream, derive_seed, numpy_generator
from fl_sim.registry import Registry
from fl_sim.settings import Settings, parse
from fl_sim.training import (
    LocalTraining,
    StepHooks,
    TrainingSettings,
    batch_indices,
    make_optimizer,
    predict,
    task_step,
    train,
)

TASK = Task("binary-class", ("no", "yes"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=2)


def _data(count: int) -> Split:
    labels = np.arange(count) % 2
    noise = numpy_generator(0, "noise").integers(0, 100, (count, 16, 16, 1))
    return Split((noise + 120 * labels[:, None, None, None]).astype(np.uint8), labels)


def _run(count: int = 64, **settings: object) -> LocalTraining:
    parsed = parse(TrainingSettings, {"epochs": 6, "batch_size": 16, **settings}, "[training]")
    return LocalTraining(build_model("cnn", 1, 16, 2), SPEC, _data(count), TASK, parsed, Stream(0))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_learns(optimizer: str) -> None:
    run = _run(optimizer=optimizer, learning_rate=3e-3, flip=True)
    report = train(run)
    found = predict(run.model, run.data, TASK).argmax(1)
    assert (found == torch.tensor(run.data.labels)).float().mean() > 0.95
    assert report.steps == len(report.losses["task"]) == 24 and report.images == 6 * 64


def test_every_image_is_seen_once_a_pass_and_no_batch_has_one_image() -> None:
    batches = batch_indices(33, 16, numpy_generator(0, "x"))
    first_pass = list(itertools.islice(batches, 2))
    assert [len(batch) for batch in first_pass] == [16, 16]
    assert len(np.unique(np.concatenate(first_pass))) == 32
    assert next(batch_indices(1, 16, numpy_generator(0, "x"))).tolist() == [0, 0]


def test_a_hospital_with_one_image_or_none() -> None:
    assert train(_run(1)).images > 0
    with pytest.raises(FlSimError, match="no images"):
        train(_run(0))


ORGANS = Task(SEGMENTATION, ("background", "a", "b"))


def test_the_loss_of_masks_is_dice_and_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator)
    masks = torch.randint(2, (4, 8, 8), generator=generator)  # no pixel of the third class
    probabilities = logits.softmax(1)
    dice = []
    for number in (1, 2):
        said, wanted = probabilities[:, number], (masks == number).float()
        overlap, sizes = (said * wanted).sum(), said.sum() + wanted.sum()
        dice.append(1 - (2 * overlap + 1e-5) / (sizes + 1e-5))
    expected = sum(dice) / 2 + torch.nn.functional.cross_entropy(logits, masks)
    assert float(ORGANS.loss(logits, masks)) == pytest.approx(float(expected), rel=1e-5)
    right = 50.0 * torch.nn.functional.one_hot(masks, 3).permute(0, 3, 1, 2)
    # The class that is nowhere costs its smoothing only.
    assert float(ORGANS.loss(right, masks)) < 0.01


def test_what_a_segmentation_task_says_of_itself() -> None:
    assert ORGANS.is_segmentation and not TASK.is_segmentation
    assert (ORGANS.family, TASK.family) == ("segmentation", "classification")
    assert (ORGANS.main_metric, TASK.main_metric) == ("dice", "auc")
    assert ORGANS.outputs == 3 and not ORGANS.multi_label
    scores = ORGANS.scores(torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 4, 4))


def test_masks_are_flipped_with_their_images() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((images, torch.zeros(0)))
            return self.conv(images)

    class Noting(Task):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen[-1] = (seen[-1][0], labels)
            return logits.sum()

    random = np.random.default_rng(0)
    masks = random.integers(0, 3, (4, 6, 6)).astype(np.uint8)
    data = Split((masks[..., None] * 100).astype(np.uint8), masks)
    model = Spy()
    optimizer = make_optimizer(model.parameters(), TrainingSettings(), 0.1)
    flip = np.array([True, False, True])
    task = Noting(SEGMENTATION, ORGANS.label_names)
    task_step(model, data, np.array([3, 1, 0]), task, optimizer, flip=flip)
    images, labels = seen[0]
    assert np.array_equal(labels[0].numpy(), masks[3, :, ::-1])
    assert np.array_equal(labels[1].numpy(), masks[1])
    torch.testing.assert_close((images[:, 0] + 1) / 2 * 255, labels * 100.0)
    assert np.array_equal(data.labels, masks)  # the dataset's own are as they were


def test_predicted_masks_say_where_there_is_no_answer() -> None:
    scores = torch.rand(3, 4, 5, 5)
    scores[1, 2, 0, 0] = float("nan")
    masks = predicted_masks(scores)
    assert masks.dtype == torch.uint8
    assert torch.equal(masks[0].long(), scores[0].argmax(0))
    assert (masks[1] == NO_ANSWER).all() and not (masks[2] == NO_ANSWER).any()


def test_large_masks_are_predicted_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(torch.nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return super().forward(images)

    monkeypatch.setattr("fl_sim.training.PREDICTED_PIXELS", 150)
    data = Split(np.zeros((5, 8, 8, 1), dtype=np.uint8), np.zeros((5, 8, 8), dtype=np.uint8))
    assert predict(Counting(1, 3, 1), data, ORGANS).shape == (5, 8, 8)
    assert sizes == [2, 2, 1]


def test_hooks_are_called_around_each_step_in_order() -> None:
    calls: list[str] = []

    class Hooks(StepHooks):
        def before_step(self, done: float, optimizer: torch.optim.Optimizer) -> None:
            calls.append(f"before {done:.2f}")

        def add_gradient(self) -> None:
            calls.append("gradient")

        def after_step(self) -> dict[str, float]:
            calls.append("after")
            return {"extra": 1.0}

    report = train(_run(32, epochs=1), Hooks())
    assert calls == ["before 0.00", "gradient", "after", "before 0.50", "gradient", "after"]
    assert report.losses["extra"] == [1.0, 1.0]


def test_a_diverging_training_is_one_sentence() -> None:
    with pytest.raises(FlSimError, match="lower the learning_rate"):
        train(_run(optimizer="sgd", learning_rate=1e30, epochs=20))


def test_derived_seeds_differ_by_every_part_and_repeat() -> None:
    parts = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", "1", "1"), (0, "a1")]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(*part) for part in parts]
    # Pinned: a seed that moved would silently change every published table.
    assert derive_seed(0, "cohort", 3) == 2636396714720290920


def test_a_name_registered_twice_is_refused() -> None:
    registry: Registry[object] = Registry("thing", "fl_sim.restorations")
    registry.register("one", "first")(Split)
    registry.register("one", "the same again")(Split)
    with pytest.raises(FlSimError, match="registered twice"):
        registry.register("one", "another")(Task)


def test_settings_say_what_is_wrong_in_one_sentence() -> None:
    class Inner(Settings):
        depth: int = 1

    class Outer(Settings):
        inner: Inner = Inner()
        width: float = 1.0

    with pytest.raises(FlSimError, match=r"no key 'inner.dpth'. Did you mean 'depth'"):
        parse(Outer, {"inner": {"dpth": 2}}, "[outer]")
    with pytest.raises(FlSimError, match=r"'width' is 'wide'"):
        parse(Outer, {"width": "wide"}, "[outer]")
