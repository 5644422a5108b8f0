"""What a step saves where convolutions leave out the taps that meet only padding.

Run ``python -m experiments.benchmarks.padding``. The same step is timed as it is and with whole
kernels, in turns in one process; the ratio is the median over the turns.
"""

import argparse
from collections.abc import Callable
from unittest import mock

import torch

from experiments.benchmarks.steps import (
    compare,
    memory_step,
    random_images,
    task_of,
    task_step_of,
)
from fl_sim.defenses.loops.distil import DistillingSettings, _step
from fl_sim.models import ModelSpec, build, reachable
from fl_sim.views import label_shares

NETWORKS = (
    ("resnet18", "default", 28),
    ("resnet50", "default", 28),
    ("mobilenet_v3_small", "default", 32),
    ("efficientnet_b0", "default", 28),
    ("cnn", "default", 28),
    ("vgg11", "small", 28),
    ("densenet121", "small", 28),
    ("unet", "default", 32),
)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each pair")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| network | step | whole kernels, ms | without padding, ms | ratio |")
    print("|---|---|---|---|---|")
    for name, stem, size in NETWORKS:
        task = "segmentation" if name == "unet" else "classification"
        spec = ModelSpec(name=name, channels=3, size=size, classes=7, stem=stem, task=task)
        steps = {"task": task_step_of(spec, arguments.batch)}
        if name == "resnet18":
            steps["Transpose's memory"] = memory_step(spec, arguments.batch)
            steps["distillation"] = _distillation(spec, arguments.batch)
        for what, step in steps.items():
            a, b, ratio = compare(step, _whole(step), arguments.turns)
            words = f"{name}, {stem} stem, {size} px"
            print(f"| {words} | {what} | {b:.0f} | {a:.0f} | {ratio:.2f} |", flush=True)


def _whole(step: Callable[[], object]) -> Callable[[], object]:
    """Return the same step with whole kernels."""

    def plain() -> object:
        with mock.patch.object(reachable, "reached", lambda convolution, size: None):
            return step()

    return plain


def _distillation(spec: ModelSpec, batch: int) -> Callable[[], object]:
    student, teacher = build(spec).train(), build(spec, 1).eval()
    optimizer = torch.optim.Adam(student.parameters(), 1e-5, fused=True)
    images, labels = random_images(spec, batch).tensors()
    task = task_of(spec)
    shares = label_shares(labels, task)
    return lambda: _step(student, teacher, images, shares, task, optimizer, DistillingSettings())


if __name__ == "__main__":
    main()
