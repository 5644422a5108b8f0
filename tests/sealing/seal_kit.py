"""Small sealed heads, and plain products to hold them against."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.sealing.ckks import Scheme, SecretScheme, to_bytes
from fl_sim.sealing.forms import SealedHead, Shape, default_parameters, encrypted_head
from fl_sim.sealing.parameters import CkksParameters

SMALL = CkksParameters(4096, (40, 29, 40), 29)
"""Faster than the default, with errors of 1e-3."""


def layers_of(shape: Shape, seed: int = 0) -> list[NDArray[np.float64]]:
    """Random layers, the bias last."""
    generator = np.random.default_rng(seed)
    sizes = [shape.features, *([shape.hidden] if shape.hidden else []), shape.outputs]
    return [
        generator.normal(size=(outputs, inputs + 1)) / inputs**0.5
        for inputs, outputs in pairwise(sizes)
    ]


def plain(layers: Sequence[NDArray[np.float64]], features: NDArray[np.float64]) -> Any:
    """What a head answers, by products of matrices alone."""
    for number, layer in enumerate(layers):
        inputs = features**2 if number else features
        features = layer[:, :-1] @ inputs + layer[:, -1]
    return features


class Kept:
    """A sealed head with both its sides."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape, self.layers = shape, layers_of(shape, seed)
        self.owner = SecretScheme(shape.parameters)
        self.weights, self.keys = encrypted_head(shape, self.layers, self.owner)
        self.receiver = SealedHead(shape, Scheme(shape.parameters), self.weights, self.keys)

    def answer(self, features: NDArray[np.float64]) -> list[bytes]:
        return [to_bytes(part) for part in self.receiver.answer(features)]

    def read(self, answer: list[bytes]) -> NDArray[np.float64]:
        level, scale = self.shape.answer_level, self.shape.answer_scale(self.owner)
        parts = [self.owner.ciphertext(part, level, scale, "It", computed=True) for part in answer]
        return self.shape.answers(np.stack([self.owner.decrypted(part) for part in parts]))


def shape_of(features: int, outputs: int, hidden: int = 0, form: Any = "product") -> Shape:
    """A head with small parameters, or of two layers with the default ones."""
    parameters = default_parameters(2) if hidden else SMALL
    return Shape(features, outputs, hidden, form, parameters)
