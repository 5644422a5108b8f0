"""Error-correcting codes: what they promise to correct they do, and nothing breaks them."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from fl_sim.coding.base import CODES, Code, soft_bits
from fl_sim.coding.gf256 import INV, MUL, matmul, solve
from fl_sim.coding.ldpc import COLUMNS, LIFT, Ldpc, _graph
from fl_sim.coding.rate import TOLERATED, choose_rate
from fl_sim.errors import FlSimError
from fl_sim.settings import parse

ALL: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("repetition", {"times": 5}),
    ("reed_solomon", {"rate": 0.5}),
    ("reed_solomon", {"rate": 0.9}),
    ("polar", {"rate": 0.5}),
    ("polar", {"rate": 0.8, "check": 2}),
    ("polar", {"rate": 0.2}),
    ("ldpc", {"rate": 0.5}),
    ("ldpc", {"rate": 0.85}),
    ("ldpc", {"rate": 0.1}),
]
CORRECTING = [(name, settings) for name, settings in ALL if name != "none"]


def code(name: str, seed: int = 4, **settings: Any) -> Code[Any]:
    kind = CODES.get(name)
    return kind(parse(kind.Settings, settings, "coding"), seed)


def payload(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def flipped(content: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    bits = np.unpackbits(content, bitorder="little")
    bits ^= (np.random.default_rng(seed).random(len(bits)) < share).astype(np.uint8)
    return np.packbits(bits, bitorder="little")


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_what_was_coded_comes_back(name: str, settings: dict[str, Any]) -> None:
    one = code(name, **settings)
    for count in (0, 1, 7, one.block - 1, one.block, one.block + 1, 3 * one.block + 5):
        content = payload(count)
        sent = one.encode(content)
        assert len(sent) == one.size(count) and sent.dtype == np.uint8
        for arrived in (sent, soft_bits(sent) * np.float32(0.01)):
            decoded = one.decode(arrived, count)
            assert np.array_equal(decoded.content, content)
            assert not decoded.failed.any() and decoded.corrected == 0


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_the_room_is_the_longest_payload_that_fits(name: str, settings: dict[str, Any]) -> None:
    one = code(name, **settings)
    for capacity in (-3, 0, 1, 300, 5000, 123_456):
        room = one.room(capacity)
        assert one.size(room) <= max(0, capacity)
        assert one.size(room + 1) > capacity
    full = one.room(500_000)
    assert abs(full / 500_000 - one.rate) < 0.01


@pytest.mark.parametrize(("name", "settings"), CORRECTING)
def test_errors_within_reach_are_corrected_and_counted(name: str, settings: dict[str, Any]) -> None:
    one, share = code(name, **settings), 0.002
    content = payload(20 * one.block)
    sent = one.encode(content)
    arrived = flipped(sent, share)
    decoded = one.decode(arrived, len(content))
    assert np.array_equal(decoded.content, content)
    assert not decoded.failed.any()
    assert decoded.corrected == int(np.unpackbits(sent ^ arrived).sum())


@pytest.mark.parametrize("name", ["reed_solomon", "ldpc"])
def test_noise_fails_and_says_so(name: str) -> None:
    one = code(name)
    decoded = one.decode(payload(one.size(5000), 3), 5000)
    assert decoded.failed.all() and decoded.corrected == 0
    assert len(decoded.content) == 5000


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_any_input_is_decoded_to_something(name: str, settings: dict[str, Any]) -> None:
    one = code(name, **settings)
    size = one.size(300)
    wild = np.random.default_rng(0).standard_cauchy(8 * size).astype(np.float32)
    wild[::7], wild[1::7], wild[2::7] = np.nan, np.inf, -np.inf
    inputs = [wild, payload(size), payload(3), payload(2 * size), np.zeros(0, np.uint8)]
    inputs += [np.zeros(8 * size, np.float32), np.full(8 * size, 1e-38, np.float32)]
    for arrived in inputs:
        assert len(one.decode(arrived, 300).content) == 300
    if name != "none":
        # Nothing arrived: all zeros are a codeword, but no message.
        assert one.decode(np.zeros(8 * size, np.float32), 300).failed.all()


def test_reed_solomon_corrects_exactly_half_its_parity() -> None:
    one = code("reed_solomon", rate=0.9)
    parity = one.coded(10) - 10
    assert parity == 26
    data = payload(229 * 30).reshape(30, 229)
    clean = one.encode_blocks(data)
    rng = np.random.default_rng(2)
    for errors, ok in ((parity // 2, True), (parity // 2 + 1, False)):
        arrived = clean.copy()
        for row in arrived:
            row[rng.choice(255, errors, replace=False)] ^= rng.integers(1, 256, errors).astype("u1")
        decoded, failed = one.decode_blocks(soft_bits(arrived.reshape(-1)).reshape(30, -1), 229)
        assert (~failed).all() == ok and failed.all() != ok
        assert np.array_equal(decoded, data) == ok


def test_soft_values_correct_more_than_hard_ones() -> None:
    one = code("ldpc", rate=0.5)
    content = payload(10 * one.block)
    clean = soft_bits(one.encode(content))
    noisy = clean + 0.85 * np.random.default_rng(5).standard_normal(len(clean)).astype(np.float32)
    assert ((noisy > 0) != (clean > 0)).mean() > 0.11  # more than any code of that rate, hard
    assert np.array_equal(one.decode(noisy, len(content)).content, content)
    hard = one.decode(np.packbits(noisy > 0, bitorder="little"), len(content))
    assert hard.failed.all()


def test_unknown_bits_are_cheaper_than_wrong_ones() -> None:
    one = code("ldpc", rate=0.5)
    content = payload(5 * one.block)
    soft = soft_bits(one.encode(content))
    soft[np.random.default_rng(0).random(len(soft)) < 0.35] = 0
    assert np.array_equal(one.decode(soft, len(content)).content, content)


@pytest.mark.parametrize("name", ["reed_solomon", "ldpc"])
def test_a_burst_is_spread_over_all_blocks(name: str) -> None:
    one = code(name, rate=0.5)
    content = payload(40 * one.block)
    sent = one.encode(content)
    burst = len(sent) // 25  # longer than a block
    assert burst > one.coded(one.block)
    sent[1000 : 1000 + burst] ^= 255
    assert np.array_equal(one.decode(sent, len(content)).content, content)


def test_the_interleaver_is_keyed() -> None:
    content = payload(4000)
    assert not np.array_equal(code("ldpc", 1).encode(content), code("ldpc", 2).encode(content))
    assert code("ldpc", 1).decode(code("ldpc", 2).encode(content), 4000).failed.all()


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_no_two_columns_of_an_ldpc_code_share_two_checks(rate: float) -> None:
    one = code("ldpc", rate=rate)
    assert isinstance(one, Ldpc)
    checks = sparse.lil_matrix((one.rows * LIFT, COLUMNS * LIFT), dtype=np.int64)
    for row, edges in enumerate(_graph(one.rows).rows):
        for edge in edges:
            for z in range(int(edge.open), LIFT):
                checks[row * LIFT + z, edge.column * LIFT + (z + edge.shift) % LIFT] += 1
    checks = checks.tocsr()
    assert checks.max() == 1
    overlap = (checks @ checks.T).tolil()
    overlap.setdiag(0)
    assert overlap.tocsr().max() <= 1
    # The code is what the matrix says.
    coded = np.unpackbits(one.encode_blocks(payload(one.block)[None])[0], bitorder="little")
    assert not (checks @ coded % 2).any()


def test_a_rehearsed_rate_has_the_stated_margin() -> None:
    for error in (0.0, 0.001, 0.005, 0.02, 0.05, 0.1):
        rate = choose_rate(error)
        assert TOLERATED[rate] >= 1.3 * error + 0.002
        assert all(most < 1.3 * error + 0.002 for r, most in TOLERATED.items() if r > rate)
    assert choose_rate(0.0) == 0.9
    assert choose_rate(0.5) == min(TOLERATED)
    one = code("ldpc", rate="rehearsed", bit_error_rate=0.02)
    assert one.settings.rate == choose_rate(0.02)


@pytest.mark.parametrize("rate", list(TOLERATED))
def test_ldpc_stands_what_the_table_says(rate: float) -> None:
    one = code("ldpc", rate=rate)
    content = payload(12 * one.block)
    arrived = flipped(one.encode(content), TOLERATED[rate])
    assert np.array_equal(one.decode(arrived, len(content)).content, content)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ldpc", {"rate": 0.95}, "0.1 to 0.9"),
        ("ldpc", {"rate": "rehearsed"}, "needs bit_error_rate"),
        ("repetition", {"times": 1}, "times"),
        ("reed_solomon", {"rate": 1.0}, "rate"),
    ],
)
def test_impossible_settings_are_refused(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(FlSimError, match=sentence):
        code(name, **settings)


def test_the_field_is_a_field() -> None:
    a, b, c = (payload(500, seed) for seed in (1, 2, 3))
    assert np.array_equal(MUL[a, b ^ c], MUL[a, b] ^ MUL[a, c])
    assert np.array_equal(MUL[a, MUL[b, c]], MUL[MUL[a, b], c])
    assert (MUL[np.arange(1, 256), INV[1:]] == 1).all()
    matrix, values = payload(36, 4).reshape(6, 6), payload(60, 5).reshape(6, 10)
    assert np.array_equal(matmul(matrix, solve(matrix, values)), values)
