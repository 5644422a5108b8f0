"""The entropy coder and its worker process: nothing lost, and no string that does harm."""

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.codecs import entropy
from fl_sim.codecs.entropy import (
    LARGEST_SYMBOL,
    Tables,
    calibrated,
    decode_symbols,
    encode_symbols,
    factorized_prior,
    factorized_tables,
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


def worker_id() -> int:
    """Process id of the worker, started if need be."""
    code, indexes = encoded(5)
    assert not isinstance(decode_symbols([(code, indexes)], TABLES)[0], str)
    process = entropy._worker._process
    assert process is not None
    return process.pid


def encoded(count: int, seed: int = 1) -> tuple[bytes, np.ndarray]:
    """A code of symbols within their rows, and their indexes."""
    random = np.random.default_rng(seed)
    indexes = random.integers(0, len(TABLES.lengths), count)
    return encode_symbols(random.integers(-2, 3, count), indexes, TABLES), indexes


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 128, 5000])
def test_symbols_come_back_within_and_far_outside_their_rows(count: int) -> None:
    random = np.random.default_rng(count)
    for spread in (3, 40, LARGEST_SYMBOL):
        indexes = random.integers(0, len(TABLES.lengths), count)
        symbols = random.integers(-spread, spread + 1, count)
        code = encode_symbols(symbols, indexes, TABLES)
        assert len(code) <= longest_string(count)
        (decoded,) = decode_symbols([(code, indexes)], TABLES)
        assert not isinstance(decoded, str), decoded
        assert decoded.dtype == np.int32 and (decoded == symbols).all()


def test_no_symbols_make_no_bytes() -> None:
    nothing = np.zeros(0, dtype=np.int32)
    assert encode_symbols(nothing, nothing, TABLES) == b""
    assert decode_symbols([(b"", nothing)], TABLES)[0].tolist() == []  # type: ignore[union-attr]
    assert isinstance(decode_symbols([(b"12345678", nothing)], TABLES)[0], str)


def test_the_first_symbols_can_be_decoded_alone() -> None:
    code, indexes = encoded(60)
    (whole,) = decode_symbols([(code, indexes)], TABLES)
    (part,) = decode_symbols([(code, indexes[:5])], TABLES, more=55)
    assert np.array_equal(part, whole[:5])
    assert "bytes, which 5 symbols cannot have" in decode_symbols(
        [(bytes(longest_string(5) + 1), indexes[:5])], TABLES
    )[0]  # fmt: skip


def test_what_the_coder_cannot_take_is_refused_in_one_sentence() -> None:
    one = np.zeros(1, dtype=np.int64)
    for symbol in (LARGEST_SYMBOL + 1, -LARGEST_SYMBOL - 1):
        with pytest.raises(FlSimError, match="weights are damaged or its training diverged"):
            encode_symbols(one + symbol, one, TABLES)
    with pytest.raises(FlSimError, match="weights are damaged"):
        encode_symbols(np.array([np.nan]), one, TABLES)
    for row in (-1, len(TABLES.lengths)):
        with pytest.raises(FlSimError, match="have 8 rows"):
            encode_symbols(one, one + row, TABLES)
        assert "row" in decode_symbols([(bytes(8), one + row)], TABLES)[0]
    with pytest.raises(FlSimError, match="2 symbols cannot be encoded by 1 indexes"):
        encode_symbols(np.zeros(2), one, TABLES)


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


def test_strings_are_those_of_compressai_less_the_zero_bytes() -> None:
    random = np.random.default_rng(3)
    coder, saved = entropy._coder().RansEncoder(), []
    listed = (TABLES.cdf.tolist(), TABLES.lengths.tolist(), TABLES.offsets.tolist())
    for _ in range(2000):
        count = int(random.integers(3, 60))
        indexes, symbols = random.integers(0, 8, count), random.integers(-9, 9, count)
        original = coder.encode_with_indexes(symbols.tolist(), indexes.tolist(), *listed)
        ours = encode_symbols(symbols, indexes, TABLES)
        assert entropy._restored(ours) == original
        saved.append(len(original) - len(ours))
    assert set(saved) == {0, 1, 2, 3} and 1.2 < np.mean(saved) < 2.0


def test_tables_are_those_of_compressai() -> None:
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(5)
    names = set(bottleneck.state_dict())
    sizes = [b.numel() for b in bottleneck.buffers()]
    made, medians = factorized_prior(bottleneck)
    assert set(bottleneck.state_dict()) == names
    assert [b.numel() for b in bottleneck.buffers()] == sizes and made.cdf.shape[0] == 5

    copied = calibrated(bottleneck)
    values = 6 * torch.randn(3, 5, 4, 4)
    indexes = np.repeat(np.arange(5), 16)
    symbols = (values - medians[:, None, None]).round().numpy()
    ours = [encode_symbols(s, indexes, factorized_tables(bottleneck)) for s in symbols]
    assert [entropy._restored(code) for code in ours] == copied.compress(values)

    conditional = GaussianConditional([0.11, 0.5, 2.0, 20.0])
    scales = torch.rand(3, 5, 4, 4) * 21
    expected = GaussianConditional([0.11, 0.5, 2.0, 20.0])
    expected.update()
    rows = expected.build_indexes(scales)
    made = gaussian_tables(conditional)
    ours = [
        encode_symbols(v.round().numpy(), row.numpy(), made)
        for v, row in zip(values, rows, strict=True)
    ]
    assert [entropy._restored(code) for code in ours] == expected.compress(values, rows)
    assert len(gaussian_tables(GaussianConditional(None)).lengths) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_prior_is_refused_and_does_not_hang(value: float) -> None:
    from compressai.entropy_models import EntropyBottleneck

    bottleneck = EntropyBottleneck(3)
    with torch.no_grad():
        bottleneck.matrices[1][0] = value
    with pytest.raises(FlSimError, match="training diverged"):
        factorized_tables(bottleneck)


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


def test_thousands_of_damaged_strings_give_values_and_always_the_same() -> None:
    random = np.random.default_rng(7)
    code, indexes = encoded(40)
    requests = [(_damaged(code, random), indexes) for _ in range(4000)]
    first = decode_symbols(requests, TABLES)
    before = worker_id()
    entropy._worker.stop()
    second = decode_symbols(requests, TABLES)
    assert worker_id() != before
    kinds = set()
    for one, other in zip(first, second, strict=True):
        kinds.add(type(one))
        if isinstance(one, str):
            assert one == other and one.endswith(".")
        else:
            assert np.array_equal(one, other) and one.shape == (40,)
            assert np.abs(one.astype(np.int64)).max() <= LARGEST_SYMBOL
    assert kinds == {str, np.ndarray}


def test_a_string_of_endless_digits_stays_within_the_zeros() -> None:
    # All ones: a symbol outside its row whose digits' number is as large as it can be, for every
    # symbol there is, from a table in which hardly anything else happens.
    worst = Tables(np.array([[0, 1, 2**16]]), np.array([3]), np.array([0]))
    for count in (1, 5, 300):
        indexes = np.zeros(count, dtype=np.int32)
        for size in {5, 8, 40, longest_string(count)} & set(range(longest_string(count) + 1)):
            (result,) = decode_symbols([(b"\xff" * size, indexes)], worst)
            assert isinstance(result, str | np.ndarray)
            assert result is not None and "ended" not in str(result)


def test_the_worker_has_limits_and_only_its_own_code() -> None:
    entropy._worker.stop()
    pid = worker_id()
    memory = entropy.MEMORY_LIMIT
    assert resource.prlimit(pid, resource.RLIMIT_AS) == (memory, memory)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    seconds = resource.prlimit(pid, resource.RLIMIT_CPU)[0]
    assert entropy.TIME_LIMIT <= seconds <= entropy.TIME_LIMIT + 60
    mapped = Path(f"/proc/{pid}/maps").read_text()
    assert "/ans." in mapped and "torch" not in mapped and "numpy" not in mapped


def test_a_string_that_ends_the_worker_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = encoded(40), (bytes(40), np.zeros(2_000_000, dtype=np.int32))
    entropy._worker.stop()
    monkeypatch.setattr(entropy, "MEMORY_LIMIT", 48 * 2**20)
    results = decode_symbols([small, large, small], TABLES)
    entropy._worker.stop()
    assert results[1] == "The code is damaged: the entropy decoder ended over it."
    assert np.array_equal(results[0], results[2]) and isinstance(results[0], np.ndarray)


def test_a_string_that_takes_too_long_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small = encoded(40)
    before = worker_id()
    os.kill(before, signal.SIGSTOP)
    monkeypatch.setattr(entropy, "TIME_LIMIT", 0.3)
    (result,) = decode_symbols([small], TABLES)
    assert result == "The code is damaged: decoding took more than 0.3 seconds."
    monkeypatch.undo()
    (result,) = decode_symbols([small], TABLES)
    assert isinstance(result, np.ndarray)
    assert not Path(f"/proc/{before}").exists()


def test_a_worker_that_was_killed_from_outside_is_started_again() -> None:
    small = encoded(40)
    (expected,) = decode_symbols([small], TABLES)
    for _ in range(3):
        os.kill(worker_id(), signal.SIGKILL)
        (result,) = decode_symbols([small], TABLES)
        assert np.array_equal(result, expected)


def test_a_forked_process_has_its_own_worker() -> None:
    small, parents = encoded(40), worker_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            (result,) = decode_symbols([small], TABLES)
            process = entropy._worker._process
            fine = isinstance(result, np.ndarray) and process is not None
            os.write(writing, str(process.pid if fine and process else 0).encode())
            entropy._worker.stop()
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    childs = int(os.read(reading, 20))
    os.close(reading)
    assert childs not in (0, parents)
    assert worker_id() == parents


PARENT = """
import os, signal, sys
import numpy as np
from fl_sim.codecs import entropy
t = entropy.Tables(np.array([[0, 9, 65536]]), np.array([3]), np.array([0]))
zeros = np.zeros(50, dtype=np.int32)
code = entropy.encode_symbols(zeros, zeros, t)
assert (entropy.decode_symbols([(code, zeros)], t)[0] == 0).all()
assert not {"compressai", "torchvision"} & set(sys.modules)
print(entropy._worker._process.pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["killed", "normal"])
def test_the_worker_ends_with_its_parent(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT, end], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    assert (done.returncode == 0) == (end == "normal"), done.stderr
    worker = Path(f"/proc/{int(done.stdout)}")
    for _ in range(100):
        if not worker.exists() or "State:\tZ" in (worker / "status").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


def test_compressai_finds_the_extension_that_was_loaded_before_it() -> None:
    entropy._coder()
    from compressai import ans

    assert ans.RansDecoder is entropy._coder().RansDecoder
