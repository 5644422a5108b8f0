"""The Transpose attack: codes, schedule, memory, and extraction from the files alone."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.artifact import write_artifact, write_key
from fl_sim.attacks.base import Inside, Plan
from fl_sim.attacks.transpose import Transpose, TransposeSettings, one_cycle, transposed_pass
from fl_sim.attacks.transpose.codes import (
    class_vectors,
    gray_digits,
    index_codes,
    smallest_base,
)
from fl_sim.data.base import MULTI_LABEL, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.image_losses import mean_ssim, memory_loss
from fl_sim.metrics.leakage import ssim
from fl_sim.models import build_model
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, TrainingSettings, TrainReport


def number_of(gray: list[int], base: int) -> int:
    """The number whose Gray code this is."""
    number, shift = 0, 0
    for d in reversed(range(len(gray))):
        number += ((gray[d] - shift) % base) * base**d
        shift += base - gray[d]
    return number


def decode(code: torch.Tensor, base: int) -> tuple[np.ndarray, int]:
    """The class (or label) vector and the number within the class that a code stands for."""
    entries = code.round().to(torch.int64).numpy()
    return entries // base, number_of((entries % base).tolist(), base)


@pytest.mark.parametrize(("base", "digits"), [(2, 7), (3, 4), (5, 3), (10, 2), (64, 1)])
def test_gray_codes_are_distinct_invertible_and_change_one_digit_at_a_time(
    base: int, digits: int
) -> None:
    codes = [gray_digits(i, base, digits) for i in range(base**digits)]
    assert len({tuple(code) for code in codes}) == base**digits
    assert [number_of(code, base) for code in codes] == list(range(base**digits))
    for one, next_one in itertools.pairwise(codes):
        assert sum(a != b for a, b in zip(one, next_one, strict=True)) == 1


def test_a_number_too_large_has_no_code() -> None:
    with pytest.raises(FlSimError, match="no Gray code"):
        gray_digits(9, 3, 2)


@pytest.mark.parametrize(
    ("outputs", "count"), [(1, 50), (2, 5000), (7, 4694), (10, 100), (14, 3000)]
)
def test_codes_decode_to_class_and_number_without_collisions(outputs: int, count: int) -> None:
    labels = np.random.default_rng(0).integers(0, outputs, count)
    codes = index_codes(labels, outputs)
    assert len(torch.unique(codes, dim=0)) == count
    base = smallest_base(int(np.bincount(labels).max()), outputs)
    seen: dict[int, int] = {}
    for code, label in zip(codes, labels, strict=True):
        vector, number = decode(code, base)
        assert vector.argmax() == label and vector.sum() == 1
        assert number == seen.get(label, 0)
        seen[label] = number + 1


def test_multi_label_codes_decode_to_label_vectors() -> None:
    labels = (np.random.default_rng(0).random((500, 5)) < 0.3).astype(np.int64)
    codes = index_codes(labels, 5)
    assert len(torch.unique(codes, dim=0)) == 500
    _, counts = np.unique(labels, axis=0, return_counts=True)
    base = smallest_base(int(counts.max()), 5)
    for code, vector in zip(codes, labels, strict=True):
        assert (decode(code, base)[0] == vector).all()


def test_a_base_that_would_make_codes_collide_is_refused() -> None:
    with pytest.raises(FlSimError, match="too small for 100 images of one class"):
        index_codes(np.zeros(100, dtype=np.int64), 2, base=3)


def test_class_vectors_of_single_labels_are_one_hot() -> None:
    assert class_vectors(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_schedule_is_torchs_one_cycle() -> None:
    steps = 200
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for step in range(steps):
        position = step / steps
        expected = reference.get_last_lr()[0]
        assert one_cycle(position, 2e-3, 0.3) == pytest.approx(expected, rel=0.03, abs=4e-5)
        optimizer.step()
        reference.step()


def test_losses_are_zero_for_equal_images_and_ssim_is_nearly_the_reported_one() -> None:
    a, b = torch.rand(4, 3, 28, 28), torch.rand(4, 3, 28, 28)
    for kind in ("l1", "mse", "ssim", "l1+ssim"):
        assert float(memory_loss(kind, a, a)) == pytest.approx(0, abs=1e-5)
        assert float(memory_loss(kind, a, b)) > 0
    assert float(mean_ssim(a, b)) == pytest.approx(float(ssim(a, b).mean()), abs=1e-2)


TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
STREAM = Stream(0)
TRAINING = TrainingSettings(epochs=40, batch_size=16)


def _data(count: int = 48) -> Split:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, 1))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    return Split(images, generator.integers(0, 3, count))


def _attack(
    training: TrainingSettings = TRAINING, **settings: Any
) -> tuple[nn.Module, Plan, TrainReport]:
    model = build_model("cnn", 1, 16, 3)
    attack = Transpose(TransposeSettings(images=4, **settings))
    plan = attack.plan(Inside(_data(), TASK, SPEC, STREAM))
    report = attack.train(LocalTraining(model, SPEC, _data(), TASK, training, STREAM), plan)
    return model, plan, report


@pytest.fixture(scope="module")
def attacked() -> tuple[nn.Module, Plan, TrainReport]:
    return _attack()


def test_images_come_back_from_the_two_files_alone(
    tmp_path: Path, attacked: tuple[nn.Module, Plan, TrainReport]
) -> None:
    model, plan, report = attacked
    lonely = tmp_path / "receiver"
    artifact = write_artifact(lonely / "model.safetensors", SPEC, model.state_dict())
    key = write_key(lonely / "key.safetensors", plan.key)
    here = extract(artifact, key).images
    assert float(ssim(here.clamp(0, 1), plan.targets).mean()) > 0.7
    assert report.losses["memory"][-1] < report.losses["memory"][0] / 3

    # A process that has the two files and nothing else, not even a data root, sees the same.
    program = (
        "import sys, torch; from pathlib import Path; from fl_sim.extraction import extract;"
        "torch.save(extract(Path('model.safetensors'), Path('key.safetensors')).images, 'out.pt')"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], cwd=lonely, env=environment, check=True)
    there = torch.load(lonely / "out.pt", weights_only=True)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_extraction_depends_on_the_file_not_on_the_model_object(
    tmp_path: Path, attacked: tuple[nn.Module, Plan, TrainReport]
) -> None:
    model, plan = copy.deepcopy(attacked[0]), attacked[1]
    artifact = write_artifact(tmp_path / "model.safetensors", SPEC, model.state_dict())
    key = write_key(tmp_path / "key.safetensors", plan.key)
    before = extract(artifact, key).images
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(extract(artifact, key).images, before)
    write_artifact(artifact, SPEC, model.state_dict())
    assert not torch.equal(extract(artifact, key).images, before)


def test_the_key_holds_no_image(attacked: tuple[nn.Module, Plan, TrainReport]) -> None:
    _, plan, _ = attacked
    assert set(plan.key.tensors) == {"codes"}
    assert plan.key.tensors["codes"].shape == (4, 3)


def test_the_same_seed_gives_the_same_weights() -> None:
    few = TrainingSettings(epochs=2, batch_size=16)
    one, two = _attack(few)[0], _attack(few)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_released_variant_trains_no_convolution_from_the_memory(tmp_path: Path) -> None:
    model = build_model("cnn", 1, 16, 3)
    transposed_pass(model, SPEC, "as_released")(torch.rand(2, 3)).sum().backward()
    assert model[0].weight.grad is None
    _, plan, _ = _attack(TrainingSettings(epochs=1), variant="as_released")
    assert plan.key.settings["variant"] == "as_released"


@pytest.mark.parametrize("variant", ["full", "as_released"])
def test_a_vision_transformer_is_run_as_its_paper_does(variant: str) -> None:
    spec = ModelSpec(name="vit", channels=3, size=28, classes=5)
    model = build_model("vit", 3, 28, 5)
    images = transposed_pass(model, spec, variant)(torch.rand(2, 5))
    assert images.shape == (2, 3, 28, 28)
    images.square().mean().backward()
    grads = [block.mlp[0].weight.grad is not None for block in model.encoder.layers]
    assert grads == ([False] * 6 + [True] if variant == "as_released" else [True] * 7)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("resnet18", "default"),
        ("densenet121", "small"),
        ("vgg11", "small"),
        ("mlp", "default"),
        ("vit", "default"),
    ],
)
def test_every_architecture_memorises(name: str, stem: str) -> None:
    spec = ModelSpec(name=name, channels=1, size=16, classes=3, stem=stem)
    model = build_model(name, 1, 16, 3, stem)
    attack = Transpose(TransposeSettings(images=2))
    data = _data(16)
    plan = attack.plan(Inside(data, TASK, spec, STREAM))
    few = TrainingSettings(epochs=6, batch_size=16)
    report = attack.train(LocalTraining(model, spec, data, TASK, few, STREAM), plan)
    assert report.losses["memory"][-1] < 0.8 * report.losses["memory"][0]


def test_multi_label_tasks_can_be_attacked() -> None:
    task = Task(MULTI_LABEL, ("a", "b", "c"))
    data = _data()
    labels = (np.random.default_rng(1).random((48, 3)) < 0.5).astype(np.int64)
    data = Split(data.images, labels)
    attack = Transpose(TransposeSettings(images=8))
    plan = attack.plan(Inside(data, task, SPEC, STREAM))
    report = attack.train(
        LocalTraining(
            build_model("cnn", 1, 16, 3), SPEC, data, task, TrainingSettings(epochs=2), STREAM
        ),
        plan,
    )
    assert np.isfinite(report.losses["task"]).all()


def test_wanting_more_images_than_there_are_is_one_sentence() -> None:
    with pytest.raises(FlSimError, match="images is 100, but the attacked hospital has 48"):
        Transpose(TransposeSettings(images=100)).plan(Inside(_data(), TASK, SPEC, STREAM))


def test_a_diverging_attack_is_one_sentence() -> None:
    attack = Transpose(TransposeSettings(images=4, learning_rate=1e30, warmup=0.01))
    plan = attack.plan(Inside(_data(), TASK, SPEC, STREAM))
    with pytest.raises(FlSimError, match=r"loss became .* of \[attack\]"):
        attack.train(
            LocalTraining(build_model("cnn", 1, 16, 3), SPEC, _data(), TASK, TRAINING, STREAM),
            plan,
        )
