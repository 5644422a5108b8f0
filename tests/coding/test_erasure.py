"""Parity images: any loss within the parity is made good, for codes of uneven length."""

import itertools

import numpy as np
import pytest

from fl_sim.coding.erasure import ErasureSettings


def codes(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(rng.integers(0, 90))) for _ in range(count)]


def test_every_loss_within_the_parity_is_made_good() -> None:
    erasure, sent = ErasureSettings(data=4, parity=3), codes(4)
    parity = erasure.protect(sent)
    for lost in itertools.combinations(range(7), 3):
        arrived = [None if i in lost else c for i, c in enumerate([*sent, *parity])]
        assert erasure.recover(arrived[:4], arrived[4:]) == sent, lost


def test_more_is_not_made_up() -> None:
    erasure, sent = ErasureSettings(data=4, parity=2), codes(4)
    parity = erasure.protect(sent)
    arrived: list[bytes | None] = [None, None, None, sent[3]]
    assert erasure.recover(arrived, parity) == arrived


@pytest.mark.parametrize("count", [1, 5, 16, 17, 100])
def test_neighbours_are_lost_to_different_groups(count: int) -> None:
    erasure, sent = ErasureSettings(data=16, parity=4), codes(count)
    parity = erasure.protect(sent)
    assert len(parity) == erasure.pieces(count)
    assert [len(p) for p in parity] == erasure.sizes([len(c) for c in sent])
    run = min(count, 4 * -(-count // 16))
    arrived: list[bytes | None] = [None] * run + list(sent[run:])
    assert erasure.recover(arrived, parity) == sent


def test_damage_unnoticed_never_raises() -> None:
    erasure, sent = ErasureSettings(data=5, parity=3), codes(10)
    rng = np.random.default_rng(1)
    for _ in range(50):
        pieces = [*sent, *erasure.protect(sent)]
        arrived = [
            None if rng.random() < 0.3 else rng.bytes(int(rng.integers(0, 99))) for _ in pieces
        ]
        assert len(erasure.recover(arrived[:10], arrived[10:])) == 10
    assert erasure.recover([None] * 10, []) == [None] * 10


def test_the_largest_groups_work_and_larger_ones_are_refused() -> None:
    erasure, sent = ErasureSettings(data=200, parity=56), codes(200)
    parity = erasure.protect(sent)
    assert erasure.recover([None] * 56 + list(sent[56:]), parity) == sent
    with pytest.raises(ValueError, match="at most 256"):
        ErasureSettings(data=200, parity=57)
