"""The entropy coder: nothing lost, and no string that does harm."""

import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.codecs.entropy import (
    LARGEST_COUNT,
    LARGEST_SYMBOL,
    SymbolDecoder,
    Symbols,
    Tables,
    calibrated,
    encode_symbols,
    factorized_prior,
    gaussian_tables,
    longest_string,
)
from fl_sim.errors import FlSimError


def tables(rows: int = 8, entries: int = 12, seed: int = 0) -> Tables:
    """Random distributions; a row's symbols begin at minus half its length."""
    random = np.random.default_rng(seed)
    cdf = np.zeros((rows, entries), dtype=np.int32)
    lengths = random.integers(3, entries + 1, rows)
    for row, length in zip(cdf, lengths, strict=True):
        inner = random.choice(np.arange(1, 2**16), length - 2, replace=False)
        row[1 : length - 1] = np.sort(inner)
        row[length - 1] = 2**16
    return Tables(cdf, lengths, -(lengths // 2))


TABLES = tables()


def encode(values: np.ndarray, rows: np.ndarray, by: Tables = TABLES) -> bytes:
    return encode_symbols([Symbols(values, rows.astype(np.int32))], by)


def decode(code: bytes, rows: np.ndarray, by: Tables = TABLES) -> np.ndarray:
    return SymbolDecoder(code, len(rows), by).take(rows.astype(np.int32))


def result(code: bytes, rows: np.ndarray, by: Tables = TABLES) -> np.ndarray | str:
    """Symbols, or why there are none."""
    try:
        return decode(code, rows, by)
    except FlSimError as error:
        return str(error)


def encoded(count: int, seed: int = 1) -> tuple[bytes, np.ndarray]:
    """A code of symbols within their rows, and their rows."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(TABLES.lengths), count)
    return encode(random.integers(-2, 3, count), rows), rows


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 128, 5000])
def test_symbols_come_back_within_and_far_outside_their_rows(count: int) -> None:
    random = np.random.default_rng(count)
    for spread in (3, 40, LARGEST_SYMBOL):
        rows = random.integers(0, len(TABLES.lengths), count)
        symbols = random.integers(-spread, spread + 1, count)
        symbols[:2] = (spread, -spread)[:count]
        code = encode(symbols, rows)
        assert len(code) <= longest_string(count)
        decoded = decode(code, rows)
        assert decoded.dtype == np.int32 and (decoded == symbols).all()


def test_parts_come_back_one_after_the_other() -> None:
    random = np.random.default_rng(4)
    parts = [
        Symbols(random.integers(-20, 21, count), random.integers(0, 8, count).astype(np.int32))
        for count in (40, 1, 300)
    ]
    coder = SymbolDecoder(encode_symbols(parts, TABLES), 341, TABLES)
    for part in parts:
        assert (coder.take(part.rows) == part.values).all()


def test_a_string_stays_what_it_was() -> None:
    # By these bytes a release of the coder that reads old strings otherwise is noticed.
    known = Tables(np.array([[0, 60000, 65000, 65536], [0, 9, 65000, 65536]]), [4, 4], [-1, 0])
    rows = np.arange(30) % 2
    code = encode(np.where(np.arange(30) == 7, -500, rows), rows, known)
    assert code.hex() == "7cb9bbfdfdb0de7e5679857a"
    assert decode(code, rows, known).tolist() == [*[0, 1] * 3, 0, -500, *[0, 1] * 11]


def test_strings_are_no_longer_than_what_the_tables_say() -> None:
    random = np.random.default_rng(3)
    lengths, bits = 0, 0.0
    for _ in range(500):
        rows = random.integers(0, 8, 60)
        intervals = np.array([random.choice(TABLES.lengths[row] - 2) for row in rows])
        ends = TABLES.cdf[rows, intervals + 1] - TABLES.cdf[rows, intervals]
        bits -= np.log2(ends / 2**16).sum()
        lengths += len(encode(intervals + TABLES.offsets[rows], rows))
    assert 0 < lengths / 500 - bits / 500 / 8 < 3


def test_what_the_coder_cannot_take_is_refused_in_one_sentence() -> None:
    one = np.zeros(1, dtype=np.int64)
    for symbol in (LARGEST_SYMBOL + 1, -LARGEST_SYMBOL - 1, np.nan, np.inf):
        with pytest.raises(FlSimError, match="weights are damaged or its training diverged"):
            encode(one + symbol, one)
    many = np.broadcast_to(one, LARGEST_COUNT + 1)
    with pytest.raises(FlSimError, match="latents is too large; cut it"):
        encode_symbols([Symbols(many, many)], TABLES)
    with pytest.raises(FlSimError, match="latents are too large to be decoded"):
        SymbolDecoder(bytes(8), LARGEST_COUNT + 1, TABLES)
    for size in (0, 3, longest_string(5) + 1):
        with pytest.raises(FlSimError, match=f"has {size} bytes, which 5 symbols cannot have"):
            SymbolDecoder(bytes(size), 5, TABLES)


def test_tables_come_back_and_can_be_joined() -> None:
    again = Tables.from_tensors(TABLES.tensors("a."), "a.")
    other = tables(3, 30, seed=5)
    both = TABLES.joined(other)
    for made, wanted in [(again, [TABLES]), (both, [TABLES, other])]:
        rows = [row for table in wanted for row in table.rows()]
        assert all(map(np.array_equal, made.rows(), rows)) and len(made.rows()) == len(rows)
        assert made.offsets.tolist() == [o for table in wanted for o in table.offsets.tolist()]
    stored = sum(t.numel() for t in both.tensors().values())
    assert stored == int(both.lengths.sum()) + 2 * 11  # no padding


def _with(name: str, place: tuple[int, ...], value: int) -> dict[str, np.ndarray]:
    array = getattr(TABLES, name).copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    "change",
    [
        _with("cdf", (0, 0), 1),
        _with("cdf", (0, 1), 0),
        _with("cdf", (0, int(TABLES.lengths[0]) - 1), 65535),
        _with("lengths", (2,), 2),
        _with("lengths", (2,), 500),
        _with("lengths", (2,), -1),
        _with("offsets", (2,), 2**21),
        {"offsets": TABLES.offsets[:-1]},
        {"cdf": TABLES.cdf[0]},
        {"cdf": TABLES.cdf[:0], "lengths": TABLES.lengths[:0], "offsets": TABLES.offsets[:0]},
    ],
)
def test_damaged_tables_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(FlSimError, match="tables are damaged"):
        replace(TABLES, **change)


def test_damaged_tensors_are_refused() -> None:
    tensors = TABLES.tensors()
    with pytest.raises(FlSimError, match="tables lack 'lengths'"):
        Tables.from_tensors({"cdf": tensors["cdf"]})
    with pytest.raises(FlSimError, match="tables are damaged"):
        Tables.from_tensors({**tensors, "cdf": tensors["cdf"][1:]})
    with pytest.raises(FlSimError, match="tables are damaged"):
        Tables.from_tensors({**tensors, "lengths": torch.tensor([2**62, 2**62])})


def test_tables_are_those_of_compressai() -> None:
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(5)
    names = set(bottleneck.state_dict())
    sizes = [b.numel() for b in bottleneck.buffers()]
    made, medians = factorized_prior(bottleneck)
    assert set(bottleneck.state_dict()) == names
    assert [b.numel() for b in bottleneck.buffers()] == sizes and made.cdf.shape[0] == 5
    assert medians.shape == (5,)

    conditional = GaussianConditional([0.11, 0.5, 2.0, 20.0])
    gaussian = gaussian_tables(conditional)
    assert conditional.quantized_cdf.numel() == 0
    conditional.update()
    for ours, theirs in [(made, calibrated(bottleneck)), (gaussian, conditional)]:
        assert np.array_equal(ours.cdf, theirs.quantized_cdf.numpy())
        assert np.array_equal(ours.lengths, theirs.cdf_length.reshape(-1).numpy())
        assert np.array_equal(ours.offsets, theirs.offset.numpy())
    assert len(gaussian_tables(GaussianConditional(None)).lengths) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_prior_is_refused_and_does_not_hang(value: float) -> None:
    from compressai.entropy_models import EntropyBottleneck

    bottleneck = EntropyBottleneck(3)
    with torch.no_grad():
        bottleneck.matrices[1][0] = value
    with pytest.raises(FlSimError, match="training diverged"):
        factorized_prior(bottleneck)


def _damaged(code: bytes, random: np.random.Generator) -> bytes:
    kind = random.integers(5)
    if kind == 0:
        return bytes(random.bytes(int(random.integers(0, 2 * len(code)))))
    if kind == 1:
        return code[: int(random.integers(0, len(code)))]
    if kind == 2:
        return b"\xff" * int(random.integers(0, longest_string(40)))
    changed = bytearray(code)
    for _ in range(int(random.integers(1, 6))):
        changed[int(random.integers(len(code)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


DECODING = """
import pickle, sys
from test_entropy import result
requests = pickle.load(sys.stdin.buffer)
pickle.dump([result(*request) for request in requests], sys.stdout.buffer)
"""


def test_thousands_of_damaged_strings_give_values_and_always_the_same() -> None:
    random = np.random.default_rng(7)
    code, rows = encoded(40)
    requests = [(_damaged(code, random), rows) for _ in range(4000)]
    first = [result(*request) for request in requests]
    done = subprocess.run(
        [sys.executable, "-c", DECODING],
        input=pickle.dumps(requests),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    kinds = set()
    for one, other in zip(first, pickle.loads(done.stdout), strict=True):
        kinds.add(type(one))
        if isinstance(one, str):
            assert one == other and one.endswith(".")
        else:
            assert np.array_equal(one, other) and one.shape == (40,)
            assert np.abs(one.astype(np.int64)).max() <= LARGEST_SYMBOL + 1
    assert kinds == {str, np.ndarray}


def test_a_truncated_string_goes_on_with_zeros() -> None:
    code, rows = encoded(40)
    for size in range(4, len(code)):
        zeros = code[:size] + bytes(len(code) - size)
        assert np.array_equal(result(code[:size], rows), result(zeros, rows))


@pytest.mark.parametrize("common", [1, 2**16 - 1])
def test_symbols_outside_all_over_take_no_more_than_their_bytes(common: int) -> None:
    # Hardly anything else happens by the first table, and almost never that by the second.
    worst = Tables(np.array([[0, common, 2**16]]), np.array([3]), np.array([0]))
    for count in (1, 5, 300):
        rows = np.zeros(count, dtype=np.int32)
        symbols = np.full(count, LARGEST_SYMBOL)
        code = encode(symbols, rows, worst)
        assert len(code) <= longest_string(count)
        assert (decode(code, rows, worst) == symbols).all()
        for size in (4, 8, longest_string(count)):
            for byte in (b"\xff", b"\xfe", b"\0"):
                assert isinstance(result(byte * size, rows, worst), str | np.ndarray)


def test_the_largest_image_takes_seconds_at_most() -> None:
    rows = np.arange(LARGEST_COUNT, dtype=np.int32) % len(TABLES.lengths)
    symbols = rows % 3 - 1
    begin = time.monotonic()
    assert np.array_equal(decode(encode(symbols, rows), rows), symbols)
    assert time.monotonic() - begin < 20
