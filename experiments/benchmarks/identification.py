"""Time identification among many images against the plain form, side by side in one run.

Run it as ``python -m experiments.benchmarks.identification``; it prints a Markdown table. The plain
form is one product of all recovered images with all originals in float64. The two take turns; the
ratio of their CPU times is the median over the turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from fl_sim.metrics.leakage import identified_by_correlation, identified_by_distance
from fl_sim.randomness import torch_generator

Identified = Callable[[torch.Tensor, torch.Tensor], float]
_SIDE = 28


def images_like(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy copies and smooth random images, float32 ``[count, 3, 28, 28]``."""
    generator = torch_generator(0, "benchmark", "identification", count)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=_SIDE, mode="bilinear")
    return images + noise * torch.randn(images.shape, generator=generator), images


def plain_distance(recovered: torch.Tensor, originals: torch.Tensor) -> float:
    """Return the share whose nearest original is their own, by one product in float64."""
    looks, truth = recovered.flatten(1).double().clamp(0, 1), originals.flatten(1).double()
    near = 2 * looks @ truth.T - truth.square().sum(dim=1) - looks.square().sum(dim=1)[:, None]
    return _share(near)


def plain_correlation(recovered: torch.Tensor, originals: torch.Tensor) -> float:
    """Return the share whose most correlated original is their own, likewise."""
    directions = []
    for images in (recovered, originals):
        rows = images.flatten(1).double()
        rows = rows - rows.mean(dim=0)
        rows = rows - rows.mean(dim=1, keepdim=True)
        directions.append(rows / rows.norm(dim=1, keepdim=True))
    return _share(directions[0] @ directions[1].T)


def _share(scores: torch.Tensor) -> float:
    return float((scores.argmax(dim=1) == torch.arange(len(scores))).double().mean())


def compare(name: str, ways: tuple[Identified, Identified], count: int, turns: int) -> str:
    """Time one metric in both forms and return its row of the table."""
    pair = images_like(count, 0.3)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(turns):
        shares = []
        for way, taken in zip(ways, times, strict=True):
            began = time.process_time()
            shares.append(way(*pair))
            taken.append(time.process_time() - began)
        if shares[0] != shares[1]:
            raise AssertionError(f"the two forms differ: {shares}")
    ratio = statistics.median(slow / fast for fast, slow in zip(*times, strict=True))
    fast, slow = map(statistics.median, times)
    return f"| {count} | {name} | {shares[0]:.4f} | {fast:.2f} | {slow:.2f} | {ratio:.1f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 6751])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| images | by | found | CPU s | plain, CPU s | plain / this |\n|---|---|---|---|---|---|"
    )
    for count in options.images:
        for name, ways in (
            ("distance", (identified_by_distance, plain_distance)),
            ("correlation", (identified_by_correlation, plain_correlation)),
        ):
            print(compare(name, ways, count, options.turns), flush=True)


if __name__ == "__main__":
    main()
