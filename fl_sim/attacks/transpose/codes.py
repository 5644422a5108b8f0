"""Index codes of the Transpose attack: which image to recover, written in the model's outputs.

An image is addressed by its class and its number within the class. The number is written as a Gray
code in base ``N`` with as many digits as the model has outputs; the class is added as a one-hot
vector (for multi-label tasks: the label vector) scaled by ``N`` (Amit, Levy and Mirsky, NDSS 2024,
section 4, with the base chosen instead of fixed at 3, so that no two images share a code).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError


def gray_digits(index: int, base: int, digits: int) -> list[int]:
    """Return the ``base``-ary Gray code of ``index``, least significant digit first.

    Codes of successive numbers differ in one digit.

    Raises:
        FlSimError: if the number has more digits than that.
    """
    if index >= base**digits or index < 0:
        raise FlSimError(f"The number {index} has no Gray code of {digits} digits in base {base}.")
    plain = [(index // base**d) % base for d in range(digits)]
    gray, shift = [0] * digits, 0
    for d in reversed(range(digits)):
        gray[d] = (plain[d] + shift) % base
        shift += base - gray[d]
    return gray


def smallest_base(count: int, digits: int) -> int:
    """Return the smallest base, at least 2, in which ``count`` numbers have ``digits`` digits."""
    base = 2
    while base**digits < count:
        base += 1
    return base


def class_vectors(labels: NDArray[np.int64], outputs: int) -> NDArray[np.int64]:
    """Return one row of zeros and ones an image: its class one-hot, or its label vector."""
    if labels.ndim == 2:
        return labels
    return np.eye(outputs, dtype=np.int64)[labels]


def base_for(labels: NDArray[np.int64], outputs: int) -> int:
    """Return the smallest base in which every image of every class has its own number.

    Args:
        labels: ``[n]`` classes, or ``[n, outputs]`` zeros and ones.
        outputs: number of digits.
    """
    _, counts = np.unique(class_vectors(labels, outputs), axis=0, return_counts=True)
    return smallest_base(int(counts.max()), outputs)


def index_codes(labels: NDArray[np.int64], outputs: int, base: int | None = None) -> torch.Tensor:
    """Return a code for each image.

    Args:
        labels: ``[n]`` classes, or ``[n, outputs]`` zeros and ones.
        outputs: number of the model's outputs, which is the number of digits.
        base: of the Gray code; by default the smallest that is large enough for the most frequent
            class.

    Returns:
        Float32 ``[n, outputs]``, entries 0 to ``2 * base - 1``, no two rows alike.

    Raises:
        FlSimError: if the given base is too small.
    """
    classes = class_vectors(labels, outputs)
    _, group, counts = np.unique(classes, axis=0, return_inverse=True, return_counts=True)
    needed = base_for(labels, outputs)
    if base is None:
        base = needed
    elif base < needed:
        raise FlSimError(
            f"[attack] base {base} is too small for {counts.max()} images of one class with "
            f"{outputs} outputs; use {needed} or more, or leave it out."
        )
    seen: dict[int, int] = {}
    rows = []
    for which, vector in zip(group.reshape(-1).tolist(), classes, strict=True):
        number = seen.get(which, 0)
        seen[which] = number + 1
        rows.append(np.asarray(gray_digits(number, base, outputs)) + base * vector)
    return torch.from_numpy(np.stack(rows)).to(torch.float32)
