"""What a transposed step and an LWLRD step cost, beside the steps they stand next to.

Run ``python -m experiments.benchmarks.steps``. Each pair is timed in turns in one process, and the
ratio is the median over the turns, so a machine that slows down slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fl_sim.attacks.transpose import transposed_pass
from fl_sim.data.base import SEGMENTATION, Split, Task
from fl_sim.defenses.lwlrd import decayed_rates
from fl_sim.image_losses import memory_loss
from fl_sim.models import build, layers
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import numpy_generator
from fl_sim.training import task_step

NETWORKS = (("cnn", "default"), ("resnet18", "default"), ("densenet121", "small"))


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9, help="timed turns of each pair")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| network | step | beside | ms | ms beside | ratio |")
    print("|---|---|---|---|---|---|")
    for name, stem in NETWORKS:
        spec = ModelSpec(name=name, channels=3, size=28, classes=7, stem=stem)
        pairs = {
            ("transposed", "classification"): (
                memory_step(spec, arguments.batch),
                task_step_of(spec, arguments.batch),
            ),
            ("LWLRD", "plain SGD"): (
                _lwlrd(spec, arguments.batch),
                _sgd(spec, arguments.batch),
            ),
        }
        for (what, beside), (one, other) in pairs.items():
            a, b, ratio = compare(one, other, arguments.turns)
            print(f"| {name} | {what} | {beside} | {a:.0f} | {b:.0f} | {ratio:.2f} |", flush=True)


def compare(
    one: Callable[[], object], other: Callable[[], object], turns: int
) -> tuple[float, float, float]:
    """Time two functions in turns; return both medians in milliseconds and the median ratio."""
    one(), other()  # warm up
    times = [(_milliseconds(one), _milliseconds(other)) for _ in range(turns)]
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(a / b for a, b in times),
    )


def _milliseconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1000


def task_of(spec: ModelSpec) -> Task:
    """Return a task with a network's outputs."""
    names = tuple("abcdefg"[: spec.classes])
    return Task(SEGMENTATION if spec.task == "segmentation" else "multi-class", names)


def random_images(spec: ModelSpec, batch: int) -> Split:
    """Return images of a network's size, with random labels or masks."""
    generator = numpy_generator(0, "benchmark")
    shape = (batch, spec.size, spec.size)
    images = generator.integers(0, 256, (*shape, spec.channels), dtype="uint8")
    labels = shape if spec.task == "segmentation" else batch
    return Split(images, generator.integers(0, spec.classes, labels))


def memory_step(spec: ModelSpec, batch: int) -> Callable[[], object]:
    """Return a function that takes a step of Transpose's memory task."""
    model = build(spec).train()
    backwards = transposed_pass(model, spec)
    codes, (targets, _) = torch.rand(batch, 7), random_images(spec, batch).tensors()
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        memory_loss("l1+ssim", backwards(codes), targets).backward()
        optimizer.step()

    return step


def task_step_of(spec: ModelSpec, batch: int) -> Callable[[], object]:
    """Return a function that takes a step of ordinary training."""
    model = build(spec).train()
    return _step(model, torch.optim.Adam(model.parameters(), 1e-5, fused=True), spec, batch)


def _sgd(spec: ModelSpec, batch: int) -> Callable[[], object]:
    model = build(spec).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9, fused=True)
    return _step(model, optimizer, spec, batch)


def _lwlrd(spec: ModelSpec, batch: int) -> Callable[[], object]:
    model = build(spec).train()
    ordered = layers(model, spec.input_shape, "block")
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[n] for n in layer.parameters], "lr": rate}
        for layer, rate in zip(ordered, decayed_rates(1e-4, 1e-6, len(ordered)), strict=True)
    ]
    return _step(model, torch.optim.SGD(groups, momentum=0.9, fused=True), spec, batch)


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, spec: ModelSpec, batch: int
) -> Callable[[], object]:
    data = random_images(spec, batch)
    indices = numpy_generator(0, "order").permutation(batch)
    return lambda: task_step(model, data, indices, task_of(spec), optimizer)


if __name__ == "__main__":
    main()
