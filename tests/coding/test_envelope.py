"""The envelope around a coded payload: its length survives, and garbage is told from it."""

import numpy as np
import pytest

from fl_sim.coding.base import CODES, soft_bits
from fl_sim.coding.envelope import PREAMBLE, Envelope


def envelope(name: str = "ldpc", seed: int = 2) -> Envelope:
    kind = CODES.get(name)
    return Envelope(kind(kind.Settings(), seed))


def payload(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize("name", ["none", "repetition", "reed_solomon", "ldpc"])
def test_a_payload_is_found_in_a_larger_carrier(name: str) -> None:
    one = envelope(name)
    for count in (0, 1, 3000):
        sealed = one.seal(payload(count))
        assert len(sealed) == one.size(count)
        opened = one.open_bytes(np.concatenate([sealed, payload(999)]))
        assert np.array_equal(opened.payload, payload(count))
        assert np.array_equal(opened.raw, sealed)


def test_the_length_is_read_where_a_quarter_of_all_bits_is_wrong() -> None:
    one = envelope()
    soft = soft_bits(one.seal(payload(2000)))
    wrong = np.random.default_rng(1).random(len(soft)) < 0.25
    opened = one.open(lambda count: np.where(wrong, -soft, soft)[: 8 * count], len(soft) // 8)
    assert opened.decoded is not None and opened.decoded.failed.all()
    assert len(opened.payload) == 2000


def test_who_knows_the_length_needs_no_preamble() -> None:
    one = envelope()
    soft = soft_bits(one.seal(payload(2000)))
    soft[: 8 * PREAMBLE] *= -1
    assert one.open(lambda count: soft[: 8 * count], len(soft) // 8).decoded is None
    opened = one.open(lambda count: soft[: 8 * count], len(soft) // 8, 2000)
    assert np.array_equal(opened.payload, payload(2000))


def test_garbage_is_no_payload() -> None:
    one = envelope()
    for size in (0, 100, PREAMBLE, 50_000):
        opened = one.open_bytes(payload(size))
        assert opened.decoded is None and len(opened.payload) == 0 and len(opened.raw) == size


def test_a_length_beyond_the_carrier_is_not_believed() -> None:
    one = envelope()
    sealed = one.seal(payload(5000))[: one.size(5000) - 1]
    assert one.open_bytes(sealed).decoded is None


def test_room_counts_the_preamble() -> None:
    one = envelope()
    for capacity in (0, PREAMBLE, PREAMBLE + 400, 100_000):
        room = one.room(capacity)
        assert room == 0 or one.size(room) <= capacity < one.size(room + 1)
