"""What a prediction by a sealed head costs, beside the clear head in the same run.

Run ``python -m experiments.benchmarks.sealed``. CPU milliseconds of this process, the median of
turns in which both heads take one image's features each; a sealed prediction ends with the answer's
bytes. ``read`` is the owner's: from these bytes to logits. Errors are the largest difference from
the clear head's logits, over all turns. Bytes are of ciphertexts, of public keys, and of an answer.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from fl_sim.sealing.ckks import Scheme, SecretScheme, to_bytes
from fl_sim.sealing.forms import Form, SealedHead, Shape, default_parameters, encrypted_head

SIZES = ((512, 7), (512, 14), (1024, 14))
HIDDEN = 15
FORMS: tuple[tuple[int, Form], ...] = ((0, "product"), (0, "sum"), (0, "dot"), (HIDDEN, "product"))
_CLEAR = 200
"""Predictions by the clear head that are timed together: one takes microseconds."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9, help="timed turns of each pair")
    arguments = parser.parse_args()
    print(
        "| head | form | prediction, ms | clear, ms | ratio | read, ms | head, bytes | "
        "keys, bytes | answer, bytes | error |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for features, outputs in SIZES:
        for hidden, form in FORMS:
            shape = Shape(features, outputs, hidden, form, default_parameters(1 + bool(hidden)))
            print(_row(shape, arguments.turns), flush=True)


def _row(shape: Shape, turns: int) -> str:
    generator = np.random.default_rng(0)
    sizes = [shape.features, *([shape.hidden] if shape.hidden else []), shape.outputs]
    layers = [generator.normal(size=(b, a + 1)) / a**0.5 for a, b in pairwise(sizes)]
    owner = SecretScheme(shape.parameters)
    weights, keys = encrypted_head(shape, layers, owner)
    head = SealedHead(shape, Scheme(shape.parameters), weights, keys)
    sealed, clear, read, errors = [], [], [], []
    answer: list[bytes] = []
    for _ in range(turns):
        features = generator.normal(size=shape.features)
        wanted, spent = _timed(partial(_clear, layers, features), _CLEAR)
        clear.append(spent)
        answer, spent = _timed(partial(_sealed, head, features))
        sealed.append(spent)
        logits, spent = _timed(partial(_read, shape, owner, answer))
        read.append(spent)
        errors.append(float(np.abs(logits - wanted).max()))
    ratio = statistics.median(a / b for a, b in zip(sealed, clear, strict=True))
    middle = [statistics.median(values) for values in (sealed, clear, read)]
    size = "-".join(map(str, sizes))
    return (
        f"| {size} | {shape.form} | {middle[0]:.1f} | {middle[1]:.4f} | {ratio:,.0f} | "
        f"{middle[2]:.1f} | {sum(map(len, weights)):,} | {sum(map(len, keys.values())):,} | "
        f"{sum(map(len, answer)):,} | {max(errors):.0e} |"
    )


def _timed(compute: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """Return what is computed, and the CPU milliseconds that it takes once."""
    began = time.process_time()
    for _ in range(times):
        found = compute()
    return found, (time.process_time() - began) * 1e3 / times


def _sealed(head: SealedHead, features: Any) -> list[bytes]:
    return [to_bytes(ciphertext) for ciphertext in head.answer(features)]


def _clear(layers: list[Any], features: Any) -> Any:
    for number, layer in enumerate(layers):
        inputs = features * features if number else features
        features = layer[:, :-1] @ inputs + layer[:, -1]
    return features


def _read(shape: Shape, owner: SecretScheme, answer: list[bytes]) -> Any:
    scale = shape.answer_scale(owner)
    parts = [owner.ciphertext(c, shape.answer_level, scale, "It", computed=True) for c in answer]
    return shape.answers(np.stack([owner.decrypted(part) for part in parts]))


if __name__ == "__main__":
    main()
