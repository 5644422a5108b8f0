"""Payload survival: shares, counts and what stands for what did not arrive."""

import numpy as np
import pytest
import torch

from fl_sim.metrics.payload import bit_error_rate, bytes_delivered, measure_payload, value_error
from fl_sim.payload.reading import Reading, Status


def payload(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def test_bits_that_did_not_arrive_count_half() -> None:
    sent = payload(100)
    assert bit_error_rate(sent, sent) == 0
    assert bit_error_rate(sent, ~sent) == 1
    assert bit_error_rate(sent, sent[:0]) == 0.5
    assert bit_error_rate(sent, sent[:50]) == 0.25
    assert bit_error_rate(sent, np.concatenate([sent, payload(9)])) == 0
    one = sent.copy()
    one[3] ^= 4
    assert bit_error_rate(sent, one) == 1 / 800
    assert bit_error_rate(sent[:0], sent) == 0


def test_values_that_did_not_arrive_count_as_zero() -> None:
    sent = np.array([3, 4, 0, 0], np.float32)
    assert value_error(sent, sent) == 0
    assert value_error(sent, sent[:0]) == 1
    assert value_error(sent, np.array([3, np.nan], np.float32)) == pytest.approx(0.8)
    assert value_error(sent * 0, sent) == 0


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_bytes_are_delivered_in_whole_pieces(count: int) -> None:
    sent = payload(count)
    assert bytes_delivered(sent, sent) == count
    assert bytes_delivered(sent, np.concatenate([sent, sent])) == count
    assert bytes_delivered(sent, sent[:0]) == 0
    if count > 32:
        damaged = sent.copy()
        damaged[-1] ^= 1
        assert bytes_delivered(sent, damaged) == (count - 1) // 32 * 32
        assert bytes_delivered(sent, sent[:-1]) == (count - 1) // 32 * 32
        damaged[0] ^= 1
        assert bytes_delivered(sent, damaged) == (count - 1) // 32 * 32 - 32


def test_noise_delivers_nothing() -> None:
    assert bytes_delivered(payload(100_000), payload(100_000, 1)) == 0


def rows(reading: Reading, **known: object) -> dict[str, float]:
    images = torch.zeros(3, 1, 2, 2)
    images[2] = torch.nan
    given = {"sent": None, "original": None, **known}
    return {row.metric: row.value for row in measure_payload(reading, recovered=images, **given)}


def test_rows_of_a_payload_without_error_correction() -> None:
    sent = payload(64)
    arrived = sent.copy()
    arrived[0] ^= 3
    status = np.array([Status.INTACT, Status.DAMAGED, Status.LOST], np.int8)
    assert rows(Reading(arrived, status), sent=sent) == {
        "images_intact": 1,
        "images_damaged": 1,
        "images_lost": 1,
        "bit_error_rate": 2 / 512,
        "bytes_delivered": 32,
    }
    assert set(rows(Reading(arrived, status))) == {
        "images_intact",
        "images_damaged",
        "images_lost",
    }


def test_rows_of_a_payload_with_error_correction() -> None:
    sent, inside = payload(128), payload(64, 1)
    arrived, half = sent ^ np.uint8(1), inside.copy()
    half[40:] ^= 255
    measured = rows(Reading(arrived, None, half), sent=sent, corrected=inside)
    assert measured["bit_error_rate"] == 1 / 8
    assert measured["bit_error_rate_corrected"] == 24 / 64
    assert measured["bytes_delivered"] == 32
    lost = rows(Reading(arrived, None, inside[:0]), sent=sent, corrected=inside)
    assert lost["bit_error_rate_corrected"] == 0.5 and lost["bytes_delivered"] == 0


def test_rows_of_values() -> None:
    sent = np.array([1, 2, 3], np.float32)
    measured = rows(Reading(sent * 2), sent=sent, original=torch.zeros(3, 1, 2, 2))
    assert measured["value_error"] == 1
    assert (measured["images_intact"], measured["images_lost"]) == (2, 1)
    assert "bytes_delivered" not in measured
