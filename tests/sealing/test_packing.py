"""Packing at odd sizes: rows multiplied, added and rotated give the products of matrices."""

import numpy as np
import pytest

from fl_sim.errors import FlSimError
from fl_sim.sealing.packing import Products, SecondLayer, Sums

SLOTS = (8, 64)
SIZES = np.random.default_rng(0).integers(1, 40, (60, 2)).tolist()


def _layer(outputs: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(outputs * 100 + features)
    return generator.normal(size=(outputs, features)), generator.normal(size=features)


@pytest.mark.parametrize("slots", SLOTS)
def test_products_are_summed_by_the_owner(slots: int) -> None:
    for outputs, features in [*SIZES, (1, 1), (slots, 1), (1, slots), (1, slots + 1)]:
        layer, given = _layer(outputs, features)
        packing = Products(outputs, features, slots)
        rows, inputs = packing.weights(layer), packing.inputs(given)
        assert rows.shape == inputs.shape == (packing.rows, slots)
        assert packing.rows == -(-outputs * features // slots)
        np.testing.assert_allclose(packing.answer(rows * inputs), layer @ given)


def _summed(packing: Sums, row: np.ndarray) -> np.ndarray:
    for slots in packing.rotations:
        row = row + np.roll(row, -slots)
    return row


@pytest.mark.parametrize("slots", SLOTS)
def test_rotations_leave_every_sum_in_every_place(slots: int) -> None:
    sizes = [(outputs, features) for outputs, features in SIZES if outputs <= slots]
    for outputs, features in [*sizes, (1, 1), (slots, 3), (1, slots + 1)]:
        layer, given = _layer(outputs, features)
        packing = Sums(outputs, features, slots)
        rows, inputs = packing.weights(layer), packing.inputs(given)
        assert rows.shape == inputs.shape == (packing.rows, slots)
        sums = _summed(packing, (rows * inputs).sum(axis=0))
        np.testing.assert_allclose(packing.answer(sums[None]), layer @ given)
        wanted = np.zeros(packing.width)
        wanted[:outputs] = layer @ given
        np.testing.assert_allclose(sums, np.tile(wanted, slots // packing.width), atol=1e-9)


def test_a_second_layer_takes_the_repeated_sums() -> None:
    slots = 64
    for outputs, features in [(o, f) for o, f in SIZES if f <= slots]:
        layer, given = _layer(outputs, features)
        width = 1 << (features - 1).bit_length()
        packing = SecondLayer(outputs, features, width, slots)
        repeated = np.tile(np.pad(given, (0, width - features)), slots // width)
        rows = packing.weights(layer)
        assert rows.shape == (packing.rows, slots)
        np.testing.assert_allclose(packing.answer(rows * repeated), layer @ given)


def test_a_layer_of_more_outputs_than_slots_cannot_be_summed() -> None:
    with pytest.raises(FlSimError, match="9 outputs, and a ciphertext 8 slots"):
        Sums(9, 2, 8)
