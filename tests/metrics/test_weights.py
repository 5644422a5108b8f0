"""What changed in weights, bit by bit."""

import numpy as np
import pytest
import torch

from fl_sim.metrics.weights import weight_change


def test_each_flipped_bit_is_counted_where_it_is() -> None:
    weights = torch.linspace(0.1, 1.0, 10)
    bits = weights.numpy().view(np.uint32).copy()
    bits[0] ^= 1 << 3
    bits[1] ^= 1 << 22
    bits[2] ^= 1 << 31
    bits[3] ^= 1 << 31
    change = weight_change([weights], [torch.from_numpy(bits.view(np.float32))])
    assert change.elements == 10
    assert change.unchanged == pytest.approx(0.6)
    assert change.sign_errors == pytest.approx(0.2)
    assert change.bit_errors[3] == pytest.approx(0.1)
    assert change.bit_errors[22] == pytest.approx(0.1)
    assert sum(change.bit_errors) == pytest.approx(0.2)


def test_groups_count_as_one() -> None:
    before = [torch.zeros(2, 3), torch.zeros(4)]
    after = [torch.zeros(2, 3), torch.ones(4)]
    assert weight_change(before, after).unchanged == pytest.approx(0.6)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        weight_change([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="float32"):
        weight_change([torch.zeros(2, dtype=torch.float64)], [torch.zeros(2)])
    with pytest.raises(ValueError, match="no weights"):
        weight_change([], [])
