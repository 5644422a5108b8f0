"""The memory backdoor: triggers, patches, training through batch norm, extraction from files."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.artifact import Key, write_artifact, write_key
from fl_sim.attacks.base import Inside, Plan
from fl_sim.attacks.memory_backdoor import (
    MemoryBackdoor,
    MemoryBackdoorSettings,
    Triggers,
    _Memory,
    numbers_within_class,
    patch_shape,
    squares,
    triggers_of,
)
from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.metrics.leakage import identification, ssim
from fl_sim.models import build_model
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream, seeded
from fl_sim.training import (
    LocalTraining,
    TrainingSettings,
    TrainReport,
    Window,
    make_optimizer,
    predict,
)

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
STREAM = Stream(0)


def _data(count: int = 48, channels: int = 1, size: int = 16) -> Split:
    """Coarse pictures whose class is how bright they are."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, channels))
    images = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2).astype(np.uint8)
    brightness = images.mean(axis=(1, 2, 3))
    return Split(images, np.digitize(brightness, np.quantile(brightness, [1 / 3, 2 / 3])))


def _attack(
    data: Split | None = None,
    task: Task = TASK,
    spec: ModelSpec = SPEC,
    epochs: float = 25,
    model: nn.Module | None = None,
    **settings: Any,
) -> tuple[nn.Module, Plan, TrainReport]:
    data = _data() if data is None else data
    model = model or build_model(spec.name, spec.channels, spec.size, spec.classes, spec.stem)
    attack = MemoryBackdoor(
        MemoryBackdoorSettings(**{"images": 3, "batch_size": 64, "memory_steps": 2, **settings})
    )
    plan = attack.plan(Inside(data, task, spec, STREAM))
    training = TrainingSettings(epochs=epochs, batch_size=16, learning_rate=1e-3)
    report = attack.train(LocalTraining(model, spec, data, task, training, STREAM), plan)
    return model, plan, report


@pytest.mark.parametrize("outputs", [1, 2, 3, 7, 9, 14, 100, 5000])
@pytest.mark.parametrize("size", [8, 28, 33])
def test_a_patch_has_at_most_as_many_pixels_as_outputs(outputs: int, size: int) -> None:
    def queries(patch: tuple[int, int]) -> int:
        return math.ceil(size / patch[0]) * math.ceil(size / patch[1])

    fewest, square = (patch_shape(outputs, size, k) for k in ("fewest", "square"))
    assert fewest[0] * fewest[1] <= outputs and max(fewest) <= size
    assert square[0] == square[1] == min(math.isqrt(outputs), size)
    assert queries(fewest) <= queries(square)


def test_few_outputs_waste_little() -> None:
    assert patch_shape(7, 28, "fewest") == (1, 7)
    assert patch_shape(7, 28, "square") == (2, 2)
    assert patch_shape(2, 28, "fewest") == (1, 2)
    assert patch_shape(2, 28, "square") == (1, 1)
    assert patch_shape(16, 28, "fewest") == (4, 4)


def _triggers(
    channels: int, size: int, vectors: np.ndarray[Any, Any], patch: tuple[int, int]
) -> Triggers:
    numbers = torch.from_numpy(numbers_within_class(vectors))
    return Triggers((channels, size, size), patch, torch.from_numpy(vectors), numbers)


@pytest.mark.parametrize(
    ("channels", "size", "outputs", "patch"),
    [
        (3, 28, 7, (1, 7)),
        (3, 28, 2, (1, 2)),
        (1, 28, 14, (1, 14)),
        (1, 28, 2, (1, 1)),
        (3, 8, 3, (1, 3)),
        (1, 33, 100, (10, 10)),
    ],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_no_two_queries_share_a_trigger(
    channels: int, size: int, outputs: int, patch: tuple[int, int], multi_label: bool
) -> None:
    generator = np.random.default_rng(1)
    vectors = np.eye(outputs, dtype=np.int64)[generator.integers(0, min(outputs, 5), 12)]
    if multi_label:
        vectors = (generator.random((12, outputs)) < 0.4).astype(np.int64)
    triggers = _triggers(channels, size, vectors, patch)
    seen = {t.numpy().tobytes() for t in triggers.batch(torch.arange(len(triggers)))}
    assert len(seen) == len(triggers) == 12 * triggers.queries


def test_numbers_are_gray_coded_and_start_anew_in_each_class() -> None:
    labels = np.array([0, 1, 0, 0, 1, 0])
    assert numbers_within_class(np.eye(2, dtype=np.int64)[labels]).tolist() == [0, 0, 1, 2, 1, 3]
    triggers = _triggers(3, 28, np.eye(3, dtype=np.int64)[np.zeros(16, int)], (1, 3))
    red = triggers.batch(torch.arange(16) * triggers.queries)[:, 0]
    side = 13  # four squares in 27 x 28 pixels
    changed = [(a != b).sum().item() for a, b in itertools.pairwise(red)]
    assert changed == [side * side] * 15


def test_a_trigger_in_colour_shows_class_number_place_and_colour() -> None:
    vectors = np.eye(4, dtype=np.int64)[[2, 2]]
    triggers = _triggers(3, 28, vectors, (2, 2))
    number, colour, row, column = 1, 2, 3, 5
    query = ((number * 3 + colour) * 14 + row) * 14 + column
    red, green, blue = triggers.batch(torch.tensor([query]))[0]
    assert red[:27].bool().all(dim=1).sum() == 0 and red[:27].sum() == 27 * 27
    assert green[:27].nonzero().min(dim=0).values.tolist() == [13, 0]
    assert green[:27].sum() == 13 * 13
    assert blue.nonzero().tolist() == [[y, x] for y in (6, 7) for x in (10, 11)]
    assert red[27].all() and green[27].all()


@pytest.mark.parametrize("patch", [(1, 7), (2, 3), (5, 4), (10, 10), (1, 1)])
def test_images_are_what_their_patches_assemble_to(patch: tuple[int, int]) -> None:
    images = torch.rand(3, 3, 10, 10)
    triggers = _triggers(3, 10, np.eye(3, dtype=np.int64), patch)
    patches = triggers.patches(images)
    assert patches.shape == (len(triggers), patch[0] * patch[1])
    assert torch.equal(triggers.assemble(patches), images)
    # A query's trigger points at the very pixels that it asks for.
    query = triggers.queries - 1
    mask = triggers.batch(torch.tensor([query]))[0, 2].bool()
    assert set(images[0, 2][mask].tolist()) <= set(patches[query].tolist())


def test_more_squares_than_pixels_are_refused() -> None:
    assert squares(torch.ones(1, 6), 3, 3, 1).tolist() == [[[1, 1, 1], [1, 1, 1], [0, 0, 0]]]
    with pytest.raises(FlSimError, match="cannot draw 7 squares in 2x3 pixels"):
        squares(torch.ones(1, 7), 3, 3, 1)
    spec = ModelSpec(name="cnn", channels=1, size=16, classes=200)
    task = Task("multi-class", tuple(map(str, range(200))))
    with pytest.raises(FlSimError, match="cannot draw 200 squares in 8x16 pixels"):
        MemoryBackdoor(MemoryBackdoorSettings(images=2)).plan(Inside(_data(), task, spec, STREAM))


@pytest.fixture(scope="module")
def attacked() -> tuple[nn.Module, Plan, TrainReport]:
    return _attack()


def test_images_come_back_from_the_two_files_alone(
    tmp_path: Path, attacked: tuple[nn.Module, Plan, TrainReport]
) -> None:
    model, plan, report = attacked
    artifact = write_artifact(tmp_path / "model.safetensors", SPEC, model.state_dict())
    key = write_key(tmp_path / "key.safetensors", plan.key)
    images = extract(artifact, key).images
    assert float(ssim(images.clamp(0, 1), plan.targets).mean()) > 0.8
    assert identification(images, plan.targets).distance == 1
    assert report.losses["memory"][-1] < report.losses["memory"][0] / 5
    # Another model answers the same key with nothing.
    other = write_artifact(tmp_path / "other", SPEC, build_model("cnn", 1, 16, 3).state_dict())
    assert float(ssim(extract(other, key).images.clamp(0, 1), plan.targets).mean()) < 0.3


def test_the_network_still_does_its_task(attacked: tuple[nn.Module, Plan, TrainReport]) -> None:
    data = _data()
    answers = predict(attacked[0], data, TASK).argmax(dim=1).numpy()
    assert (answers == data.labels).mean() > 0.8


def test_the_key_holds_no_image(attacked: tuple[nn.Module, Plan, TrainReport]) -> None:
    key: Key = attacked[1].key
    assert {n: t.shape for n, t in key.tensors.items()} == {"classes": (3, 3), "numbers": (3,)}
    assert set(key.tensors["classes"].unique().tolist()) <= {0, 1}


def test_the_same_arguments_give_the_same_plan_and_the_same_weights() -> None:
    (one, plan, _), (two, again, _) = (_attack(epochs=2) for _ in range(2))
    assert np.array_equal(plan.indices, again.indices)
    assert torch.equal(plan.targets, again.targets)
    assert plan.key.settings == again.key.settings
    for name, tensor in plan.key.tensors.items():
        assert torch.equal(tensor, again.key.tensors[name])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def _memory(model: nn.Module, window: Window | None = None, **settings: Any) -> _Memory:
    attack = MemoryBackdoor(MemoryBackdoorSettings(images=4, **settings))
    plan = attack.plan(Inside(_data(), TASK, SPEC, STREAM))
    run = LocalTraining(model, SPEC, _data(), TASK, TrainingSettings(), STREAM, window or Window())
    return _Memory(attack.settings, run, plan)


def test_triggers_leave_the_running_statistics_to_the_tasks_images() -> None:
    model = build_model("cnn", 1, 16, 3)
    model.train()
    model[1].eval()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    weights = [p.detach().clone() for p in model.parameters()]
    _memory(model).after_step()
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert model[4].training and not model[1].training


def test_a_joint_step_adds_the_memorys_weighted_gradient_to_the_tasks() -> None:
    model = build_model("cnn", 1, 16, 3)
    gradients = []
    for weight in (1.0, 10.0):
        model.zero_grad(set_to_none=True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        hooks = _memory(model, batches="joint", weight=weight, memory_steps=2)
        hooks.add_gradient()
        weights = [p.detach().clone() for p in model.parameters()]
        assert hooks.after_step()["memory"] > 0
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
        gradients.append(model[-1].weight.grad.clone() - 1)
    torch.testing.assert_close(gradients[1], 10 * gradients[0], rtol=1e-3, atol=1e-5)
    assert float(gradients[0].abs().max()) > 0


def test_joint_training_memorises() -> None:
    _, _, report = _attack(epochs=15, batches="joint")
    assert report.losses["memory"][-1] < report.losses["memory"][0] / 2


@pytest.mark.parametrize(("schedule", "same"), [("round", True), ("run", False)])
def test_the_schedule_spans_each_round_or_the_whole_run(schedule: str, same: bool) -> None:
    model = build_model("cnn", 1, 16, 3)
    rates = []
    for window in (Window(0.0, 0.5), Window(0.5, 1.0)):
        hooks = _memory(model, window, schedule=schedule)
        task = make_optimizer(model.parameters(), TrainingSettings(), 1e-3)
        hooks.before_step(0.5, task)
        rates.append((hooks._optimizer.param_groups[0]["lr"], task.param_groups[0]["lr"]))
    assert (rates[0] == rates[1]) == same
    assert same or rates[0][1] > rates[1][1]


class _TinyResidual(nn.Module):
    """Convolutions with batch norm around a skip: a ResNet in small, for 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(images)
        answers: torch.Tensor = self.head((hidden + self.block(hidden)).relu())
        return answers


def test_a_residual_network_in_colour_answers_in_evaluation_mode() -> None:
    spec = ModelSpec(name="cnn", channels=3, size=8, classes=3)
    data = _data(channels=3, size=8)
    with seeded(0, "tiny"):
        model: nn.Module = _TinyResidual()
    model, plan, _ = _attack(data, spec=spec, model=model, images=2, epochs=40)
    triggers = triggers_of(plan.key, spec)
    with torch.no_grad():
        answers = model.eval()(triggers.batch(torch.arange(len(triggers))) * 2 - 1)
    images = triggers.assemble(answers[:, : math.prod(triggers.patch)])
    assert float(ssim(images.clamp(0, 1), plan.targets).mean()) > 0.6
    assert (predict(model, data, TASK).argmax(dim=1).numpy() == data.labels).mean() > 0.6


@pytest.mark.parametrize(
    ("name", "stem", "epochs"),
    [("mlp", "default", 8), ("resnet18", "small", 12), ("vit", "default", 5)],
)
def test_every_architecture_learns_to_answer(name: str, stem: str, epochs: int) -> None:
    spec = ModelSpec(name=name, channels=1, size=16, classes=3, stem=stem)
    data = _data(8)
    _, _, report = _attack(data, spec=spec, epochs=epochs, images=1, batch_size=8, memory_steps=1)
    memory = report.losses["memory"]
    # The running statistics lag behind at first, and single steps with them.
    assert np.median(memory[-5:]) < 0.7 * memory[0]


def test_multi_label_tasks_can_be_attacked() -> None:
    task = Task(MULTI_LABEL, ("a", "b", "c"))
    labels = (np.random.default_rng(1).random((48, 3)) < 0.5).astype(np.int64)
    model, plan, report = _attack(Split(_data().images, labels), task, epochs=8)
    assert report.losses["memory"][-1] < report.losses["memory"][0] / 2
    assert np.array_equal(plan.key.tensors["classes"].numpy(), labels[plan.indices])
    assert torch.isfinite(predict(model, _data(), task)).all()


def test_what_cannot_be_attacked_is_one_sentence() -> None:
    attack = MemoryBackdoor(MemoryBackdoorSettings(images=100))
    with pytest.raises(FlSimError, match="images is 100, but the attacked hospital has 48"):
        attack.plan(Inside(_data(), TASK, SPEC, STREAM))
    spec = ModelSpec(name="unet", channels=1, size=16, classes=3, task="segmentation")
    with pytest.raises(FlSimError, match="reads images from class scores; a segmentation"):
        attack.plan(Inside(_data(), Task(SEGMENTATION, ("a", "b", "c")), spec, STREAM))


def test_a_diverging_attack_is_one_sentence() -> None:
    with pytest.raises(FlSimError, match=r"loss became .* of \[attack\]"):
        _attack(epochs=4, learning_rate=1e30, warmup=0.01)
