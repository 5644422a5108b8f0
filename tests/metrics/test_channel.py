"""The information in soft decisions: all, none, and what a known channel lets through."""

import numpy as np
import pytest

from fl_sim.metrics.channel import channel_bits
from fl_sim.metrics.payload import measure_payload
from fl_sim.payload.reading import Reading, Status

GENERATOR = np.random.default_rng(0)
SENT = GENERATOR.integers(0, 256, 1000, dtype=np.uint8)
SIGNS = 2.0 * np.unpackbits(SENT, bitorder="little") - 1.0


def _soft(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def test_sure_and_right_decisions_hold_every_bit() -> None:
    assert channel_bits(SENT, _soft(SIGNS)) == pytest.approx(8000, rel=1e-3)


def test_noise_holds_next_to_nothing() -> None:
    values = [channel_bits(SENT, _soft(GENERATOR.normal(size=8000))) for _ in range(20)]
    assert np.mean(values) < 2


@pytest.mark.parametrize("wrong", [0.05, 0.11, 0.25, 0.4])
def test_hard_decisions_hold_what_the_binary_symmetric_channel_lets_through(wrong: float) -> None:
    flipped = np.where(GENERATOR.random(8000) < wrong, -SIGNS, SIGNS)
    entropy = -wrong * np.log2(wrong) - (1 - wrong) * np.log2(1 - wrong)
    assert channel_bits(SENT, _soft(flipped)) == pytest.approx(8000 * (1 - entropy), abs=250)


def test_soft_decisions_hold_more_than_their_signs() -> None:
    heard = SIGNS + GENERATOR.normal(size=8000)
    soft, hard = channel_bits(SENT, _soft(heard)), channel_bits(SENT, _soft(np.sign(heard)))
    # The binary-input Gaussian channel at 0 dB: 0.486 bits a use; hard decided 0.369.
    assert soft == pytest.approx(0.486 * 8000, rel=0.05)
    assert hard == pytest.approx(0.369 * 8000, rel=0.05)


def test_what_is_missing_or_not_finite_counts_as_unknown() -> None:
    half = _soft(SIGNS[:4000])
    assert channel_bits(SENT, half) < 4100
    assert channel_bits(SENT, _soft(np.full(8000, np.nan))) == 0
    assert channel_bits(SENT[:0], _soft(np.zeros(0))) == 0


def test_inverted_decisions_hold_nothing_that_a_receiver_could_know() -> None:
    assert channel_bits(SENT, _soft(-SIGNS)) == 0


def test_the_row_stands_where_bits_were_read_softly() -> None:
    import torch

    images = torch.zeros(1, 1, 2, 2)
    reading = Reading(SENT, np.array([Status.INTACT], np.int8), SENT, soft=_soft(SIGNS))
    rows = {row.metric: row.value for row in measure_payload(reading, SENT, images, None, SENT)}
    assert rows["channel_bytes"] == pytest.approx(1000, rel=1e-3)
    hard = Reading(SENT, np.array([Status.INTACT], np.int8), SENT)
    assert "channel_bytes" not in {
        row.metric for row in measure_payload(hard, SENT, images, None, SENT)
    }
