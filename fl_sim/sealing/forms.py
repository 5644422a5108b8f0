"""Forms of a sealed head: what is encrypted, what the receiver computes, what the owner reads.

A head is one linear layer, or two with a square between (the activation of Allison et al. 2025,
arXiv 2505.14323). Where the bias stands in a layer, see :mod:`fl_sim.sealing.packing`; of two
layers a further hidden unit that is always 1 carries the second one's bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.sealing.ckks import Scheme, SecretScheme
from fl_sim.sealing.packing import Products, Rows, SecondLayer, Sums
from fl_sim.sealing.parameters import ONE_LAYER, TWO_LAYERS, CkksParameters, require_secure

Form = Literal["product", "sum", "dot"]
"""``"product"``: the owner sums after decrypting, and sees the receiver's features. ``"sum"``: the
receiver sums by rotations, all outputs at once. ``"dot"``: likewise, a ciphertext an output, as
libraries do it by themselves. Two layers have ``"product"`` only, and sum in the first layer."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """How large a head is, and how it is computed when sealed.

    Args:
        features: ``D``, without that of the bias.
        outputs: ``K``.
        hidden: units between two layers; 0 for one layer.
        form: see :data:`Form`.
        parameters: of CKKS; by default 128 bits of security and a precision of 1e-5 or better.

    Raises:
        FlSimError: if parameters are weak or do not fit, or the form is none of such a head.
    """

    features: int
    outputs: int
    hidden: int = 0
    form: Form = "product"
    parameters: CkksParameters = field(default=ONE_LAYER)

    def __post_init__(self) -> None:
        if self.hidden and self.form != "product":
            raise FlSimError(
                f'A head of two layers has no form "{self.form}"; set form = "product", which '
                f"sums in the first layer by itself."
            )
        require_secure(self.parameters, 3 if self.hidden else 1)
        if self.hidden and self.first.width > self.parameters.slots:  # pragma: no cover
            raise FlSimError("The hidden layer has more units than a ciphertext has slots.")

    @cached_property
    def first(self) -> Sums:
        """How the first of two layers is packed."""
        return Sums(self.hidden + 1, self.features + 1, self.parameters.slots)

    @cached_property
    def second(self) -> SecondLayer:
        """How the second of two layers is packed."""
        slots = self.parameters.slots
        return SecondLayer(self.outputs, self.hidden + 1, self.first.width, slots)

    @cached_property
    def alone(self) -> tuple[Products | Sums, ...]:
        """How one layer is packed: in one piece, or output by output."""
        slots, features = self.parameters.slots, self.features + 1
        if self.form == "product":
            return (Products(self.outputs, features, slots),)
        if self.form == "sum":
            return (Sums(self.outputs, features, slots),)
        return (Sums(1, features, slots),) * self.outputs

    @property
    def weight_levels(self) -> tuple[int, ...]:
        """The level of each encrypted row of weights, in their order in an artifact."""
        if self.hidden:
            return (0,) * self.first.rows + (2,) * self.second.rows
        return (0,) * sum(packing.rows for packing in self.alone)

    @property
    def answer_level(self) -> int:
        """The level of answers."""
        return 3 if self.hidden else 1

    @property
    def answer_rows(self) -> int:
        """How many ciphertexts answer one image."""
        if self.hidden:
            return self.second.rows
        return self.alone[0].rows if self.form == "product" else len(self.alone)

    @property
    def rotations(self) -> tuple[int, ...]:
        """By how many slots the receiver rotates."""
        if self.hidden:
            return self.first.rotations
        return () if self.form == "product" else self.alone[0].rotations  # type: ignore[union-attr]

    def answer_scale(self, scheme: Scheme) -> float:
        """Return what the numbers of an answer are multiplied by."""
        scale, primes = scheme.scale, scheme.primes
        if not self.hidden:
            return scale * scale / primes[1]
        # The first product is with features at the scale of the prime that it uses up.
        return (scale * scale / primes[2]) * scale / primes[1]

    def rows(self, layers: Sequence[Matrix]) -> list[NDArray[np.float64]]:
        """Return the rows that are encrypted.

        Args:
            layers: ``[K, D + 1]``; or ``[H, D + 1]`` and ``[K, H + 1]``, the bias last.
        """
        if not self.hidden:
            return list(np.concatenate(_packed(self.alone, layers[0])))
        first = np.zeros((self.hidden + 1, self.features + 1))
        first[:-1] = layers[0]
        first[-1, -1] = 1  # the unit that carries the second bias
        return [*self.first.weights(first), *self.second.weights(layers[1])]

    def answers(self, decrypted: Rows) -> NDArray[np.float64]:
        """Return logits ``[K]`` of the decrypted rows of an answer."""
        if self.hidden:
            return self.second.answer(decrypted)
        if self.form == "product":
            return self.alone[0].answer(decrypted)
        parts = decrypted.reshape(len(self.alone), 1, -1)
        answers = [packing.answer(part) for packing, part in zip(self.alone, parts, strict=True)]
        return np.concatenate(answers)


def _packed(packings: tuple[Products | Sums, ...], layer: Matrix) -> list[Rows]:
    if len(packings) == 1:
        return [packings[0].weights(layer)]
    return [packing.weights(layer[k : k + 1]) for k, packing in enumerate(packings)]


def default_parameters(layers: int) -> CkksParameters:
    """Return parameters for a head of so many layers, 1 or 2."""
    return TWO_LAYERS if layers == 2 else ONE_LAYER


def encrypted_head(
    shape: Shape, layers: Sequence[Matrix], scheme: SecretScheme
) -> tuple[list[bytes], dict[str, bytes]]:
    """Encrypt a head, and make the public keys that it is computed with.

    Args:
        shape: of the head.
        layers: see :meth:`Shape.rows`.
        scheme: with the secret key.

    Returns:
        A ciphertext for each row, and keys by kind: ``"galois"`` and ``"relin"``, where needed.
    """
    rows = shape.rows(layers)
    encrypted = [
        scheme.encrypted(row, level) for row, level in zip(rows, shape.weight_levels, strict=True)
    ]
    keys = {}
    if shape.rotations:
        keys["galois"] = scheme.rotation_keys(shape.rotations)
    if shape.hidden:
        keys["relin"] = scheme.product_keys()
    return encrypted, keys


class SealedHead:
    """An encrypted head as its receiver has it: it answers, and nobody but the owner can read.

    Args:
        shape: of the head.
        scheme: without the secret key.
        weights: ciphertexts, see :func:`encrypted_head`.
        keys: likewise.

    Raises:
        FlSimError: if any of them is damaged or does not fit.
    """

    def __init__(
        self, shape: Shape, scheme: Scheme, weights: Sequence[bytes], keys: Mapping[str, bytes]
    ) -> None:
        self._shape, self._scheme = shape, scheme
        levels = shape.weight_levels
        if len(weights) != len(levels):
            raise FlSimError(
                f"The sealed head has {len(weights)} ciphertexts, and should have {len(levels)}."
            )
        self._weights = [
            scheme.ciphertext(
                content, level, scheme.scale, f"Ciphertext {number} of the head", computed=False
            )
            for number, (content, level) in enumerate(zip(weights, levels, strict=True))
        ]
        wanted = {"galois"} if shape.rotations else set()
        wanted |= {"relin"} if shape.hidden else set()
        if keys.keys() != wanted:
            raise FlSimError(
                f"The sealed head's context has the keys {sorted(keys)}, and its form takes "
                f"{sorted(wanted)}."
            )
        self._keys = {n: scheme.keys(c, n, f"The context's {n} keys") for n, c in keys.items()}

    def answer(self, features: NDArray[np.float64]) -> list[Any]:
        """Return the encrypted answer to one image's features ``[D]``, ciphertext by ciphertext."""
        inputs = np.append(np.asarray(features, np.float64), 1.0)
        if self._shape.hidden:
            return self._two_layers(inputs)
        answers, at = [], 0
        for packing in self._shape.alone:
            rows = packing.inputs(inputs)
            products = self._products(self._weights[at : at + len(rows)], rows, self._scheme.scale)
            at += len(rows)
            if isinstance(packing, Sums):
                products = [self._summed(self._added(products), packing.rotations)]
            else:
                for product in products:
                    self._scheme.evaluator.rescale_to_next_inplace(product)
            answers += products
        return answers

    def _products(self, weights: Sequence[Any], rows: Rows, scale: float) -> list[Any]:
        scheme, found = self._scheme, []
        for weight, row in zip(weights, rows, strict=True):
            product = scheme.seal.Ciphertext()
            if row.any():
                plain = scheme.plaintext(row, 0, scale)
            else:  # SEAL refuses a product with nothing, which its result would give away
                plain = scheme.plaintext(np.full_like(row, 1 / scale), 0, scale)
            scheme.evaluator.multiply_plain(weight, plain, product)
            found.append(product)
        return found

    def _added(self, products: list[Any]) -> Any:
        for product in products[1:]:
            self._scheme.evaluator.add_inplace(products[0], product)
        return products[0]

    def _summed(self, row: Any, rotations: Sequence[int]) -> Any:
        """Bring a row to the next level, and add it to itself rotated until all slots are sums."""
        evaluator = self._scheme.evaluator
        evaluator.rescale_to_next_inplace(row)
        for slots in rotations:
            turned = self._scheme.seal.Ciphertext()
            evaluator.rotate_vector(row, slots, self._keys["galois"], turned)
            evaluator.add_inplace(row, turned)
        return row

    def _two_layers(self, inputs: NDArray[np.float64]) -> list[Any]:
        scheme, shape, evaluator = self._scheme, self._shape, self._scheme.evaluator
        rows, relin = shape.first.inputs(inputs), self._keys["relin"]
        first, second = self._weights[: len(rows)], self._weights[len(rows) :]
        # At the scale of the prime that this product uses up, so that the scale stays as it is.
        hidden = self._added(self._products(first, rows, float(scheme.primes[3])))
        hidden = self._summed(hidden, shape.first.rotations)
        evaluator.square_inplace(hidden)
        evaluator.relinearize_inplace(hidden, relin)
        evaluator.rescale_to_next_inplace(hidden)
        answers = []
        for weight in second:
            product = scheme.seal.Ciphertext()
            evaluator.multiply(hidden, weight, product)
            evaluator.relinearize_inplace(product, relin)
            evaluator.rescale_to_next_inplace(product)
            answers.append(product)
        return answers
