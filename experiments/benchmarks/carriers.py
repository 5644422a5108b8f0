"""What hiding and reading a payload costs, beside a plain copy of the weights.

Run ``python -m experiments.benchmarks.carriers``. The payload fills the 16 lowest bits of every
weight of a ResNet18 (22 MB). A turn times a copy of the whole state dictionary (``clone`` of each
tensor), then ``write`` and ``read`` of each carrier; the ratio is (write + read) / copy, the median
over the turns. *Single elements* is the direct way to a keyed order: an index of all elements,
permuted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.carriers.base import State
from fl_sim.carriers.lsb import LeastSignificantBits, LsbSettings
from fl_sim.models import build_model
from fl_sim.randomness import numpy_generator

Result = TypeVar("Result")
Bytes = NDArray[np.uint8]
Way = tuple[Callable[[State, Bytes], State], Callable[[State], Bytes]]
"""How to write and how to read."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    state = build_model("resnet18", 3, 28, 7).state_dict()
    print("| order | copy, ms | write, ms | read, ms | (write + read) / copy |")
    print("|---|---|---|---|---|")
    for name, way in ways().items():
        print(f"| {name} | {' | '.join(compare(state, way, arguments.turns))} |", flush=True)


def ways() -> dict[str, Way]:
    """Return the carriers that are compared."""
    found: dict[str, Way] = {}
    for name in ("keyed", "sequential"):
        carrier = LeastSignificantBits(
            LsbSettings.model_validate({"bits": 16, "order": name}), seed=1
        )
        found[name] = (_writer(carrier), carrier.read)
    return found | {"single elements": (write_singly, read_singly)}


def _writer(carrier: LeastSignificantBits) -> Callable[[State, Bytes], State]:
    return lambda state, payload: carrier.write(state, payload)


def compare(state: State, way: Way, turns: int) -> list[str]:
    """Time one carrier beside a copy; return the cells of its row."""
    write, read = way
    size = 2 * sum(t.numel() for t in _carrying(state))
    payload = numpy_generator(0, "benchmark").integers(0, 256, size, dtype=np.uint8)
    times = []
    for turn in range(turns + 1):
        copying, _ = timed(lambda: {name: tensor.clone() for name, tensor in state.items()})
        writing, written = timed(lambda: write(state, payload))
        reading, content = timed(lambda w=written: read(w))  # type: ignore[misc]
        if not np.array_equal(content, payload):
            raise AssertionError("what was read is not what was written")
        if turn:  # the first one warms up
            times.append((copying, writing, reading))
    ratio = statistics.median((w + r) / c for c, w, r in times)
    medians = [f"{1e3 * statistics.median(part):.0f}" for part in zip(*times, strict=True)]
    return [*medians, f"{ratio:.1f}"]


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the wall time of a call in seconds, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def write_singly(state: State, payload: Bytes) -> State:
    """Write 16 bits of each element, every element by an index of its own."""
    result = {name: tensor.clone() for name, tensor in state.items()}
    carrying = _carrying(result)
    elements = payload.view(np.uint16)[_index(len(payload) // 2)]
    for tensor, part in zip(carrying, _parts(elements, carrying), strict=True):
        tensor.view(-1).numpy().view(np.uint16)[::2] = part
    return result


def read_singly(state: State) -> Bytes:
    """Read what :func:`write_singly` wrote."""
    low = [tensor.view(-1).numpy().view(np.uint16)[::2] for tensor in _carrying(state)]
    elements = np.concatenate(low)
    payload = np.empty_like(elements)
    payload[_index(len(elements))] = elements
    return payload.view(np.uint8)


def _index(count: int) -> NDArray[np.int64]:
    return numpy_generator(1, "benchmark order").permutation(count)


def _carrying(state: State) -> list[torch.Tensor]:
    return [t for n, t in state.items() if t.is_floating_point() and "running" not in n]


def _parts(elements: NDArray[np.uint16], tensors: list[torch.Tensor]) -> list[NDArray[np.uint16]]:
    return np.split(elements, np.cumsum([t.numel() for t in tensors])[:-1])


if __name__ == "__main__":
    main()
