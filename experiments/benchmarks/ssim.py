"""Time batched SSIM against a loop over scikit-image, side by side in one run.

Run it as ``python -m experiments.benchmarks.ssim``; it prints a Markdown table. The two take turns,
and the ratio of their CPU times is the median over the turns, so that a busy machine slows both
alike. ``skimage``
gets float32 images, as a loop over a tensor would give it, and float64 ones in a column of their
own, which is the precision that the batched one computes in.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from fl_sim.metrics.leakage import ssim
from fl_sim.randomness import torch_generator

CASES = ((64, 3, 28), (512, 3, 28), (64, 1, 224))


def image_pairs(count: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return smooth random images and noisy copies, float32 ``[n, channels, side, side]``."""
    generator = torch_generator(0, "benchmark", count, channels, side)
    coarse = torch.rand(count, channels, 7, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    noise = torch.randn(images.shape, generator=generator)
    return images, (images + 0.1 * noise).clamp(0, 1)


def skimage_loop(
    a: NDArray[np.float32] | NDArray[np.float64], b: NDArray[np.float32] | NDArray[np.float64]
) -> list[float]:
    """Return scikit-image's SSIM of each pair of ``[n, channels, height, width]``."""
    return [
        float(structural_similarity(x, y, channel_axis=0, data_range=1.0))
        for x, y in zip(a, b, strict=True)
    ]


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def compare(count: int, channels: int, side: int, repeats: int) -> str:
    """Time one case and return its row of the table."""
    a, b = image_pairs(count, channels, side)
    single = a.numpy(), b.numpy()
    double = single[0].astype(np.float64), single[1].astype(np.float64)
    difference = np.abs(ssim(a, b).numpy() - skimage_loop(*double)).max()
    batched, loop32, loop64 = [], [], []
    for _ in range(repeats):
        batched.append(seconds(lambda: ssim(a, b)))
        loop32.append(seconds(lambda: skimage_loop(*single)))
        loop64.append(seconds(lambda: skimage_loop(*double)))
    cells = [f"{count} x {side}x{side}x{channels}"]
    cells += [f"{1e3 * statistics.median(times):.1f}" for times in (batched, loop32, loop64)]
    for loop in (loop32, loop64):
        ratios = [slow / fast for slow, fast in zip(loop, batched, strict=True)]
        cells.append(f"{statistics.median(ratios):.1f}")
    return f"| {' | '.join([*cells, f'{difference:.1e}'])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="turns of each (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, "
        f"median of {options.repeats} turns\n\n"
        "| images | batched, ms | skimage float32, ms | skimage float64, ms | speed-up, float32 "
        "| speed-up, float64 | largest difference |\n|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        print(compare(*case, repeats=options.repeats), flush=True)


if __name__ == "__main__":
    main()
