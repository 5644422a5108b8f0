"""Entropy coding: symbols to bytes by CompressAI's rANS coder, and back in a process of its own.

The coder is the extension ``ans`` of CompressAI (Bégaint et al. 2020, arXiv 2011.03029): range
asymmetric numeral systems (Duda 2013, arXiv 1311.2540) with a 64-bit state, 32-bit words and 16-bit
frequencies. It is loaded from its file, since importing ``compressai`` takes many seconds.

Its decoder checks no bounds. Codes come out of models that somebody has changed, so every string is
decoded in a worker process with limits of memory and time; what it does to the worker is one
string's error, not the program's. Strings are followed by zeros that reach beyond the farthest word
that the decoder can ask for, so a truncated string too always decodes to the same symbols.
"""

import atexit
import copy
import glob
import importlib.util
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.codecs import rans_worker
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

Integers = NDArray[np.int32]

LARGEST_SYMBOL = 2**20
"""Beyond this a symbol is taken for an error; the coder itself cannot take more than ``2**27``."""

MEMORY_LIMIT = 2**30
"""Bytes of address space of the worker."""

TIME_LIMIT = 20.0
"""Seconds that one string may take to decode."""

LARGEST_COUNT = 2**22
"""Symbols of one string at most."""

_TOTAL = 2**16  # what frequencies sum to

_SHORTEST = 5  # bytes of a string

_DIVERGED = (
    "The entropy coder's tables cannot be built from the codec's weights: they are damaged, or "
    "training diverged; lower its learning_rate."
)


@dataclass(frozen=True)
class Tables:
    """Integer tables of the entropy coder: a row is the distribution of some of the symbols.

    Args:
        cdf: cumulative frequencies, int32 ``[rows, entries]``; row ``i`` rises strictly from 0 to
            65536 over its first ``lengths[i]`` entries. Its last interval announces a symbol
            outside the row, which then follows in plain bits.
        lengths: int32 ``[rows]``, at least 3.
        offsets: the symbol that a row's first interval stands for, int32 ``[rows]``.

    Raises:
        FlSimError: if the tables are not like that.
    """

    cdf: Integers
    lengths: Integers
    offsets: Integers

    def __post_init__(self) -> None:
        for name in ("cdf", "lengths", "offsets"):
            array = np.ascontiguousarray(np.asarray(getattr(self, name)), dtype=np.int32)
            object.__setattr__(self, name, array)
        if not self._shapes_fit() or not all(map(_is_distribution, self.rows())):
            raise FlSimError("The entropy coder's tables are damaged; save the codec anew.")

    def rows(self) -> list[Integers]:
        """Return each row's entries."""
        return [row[:length] for row, length in zip(self.cdf, self.lengths, strict=True)]

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tables by name; the rows are stored one after the other."""
        return {
            f"{prefix}cdf": torch.from_numpy(np.concatenate(self.rows())),
            f"{prefix}lengths": torch.from_numpy(self.lengths.copy()),
            f"{prefix}offsets": torch.from_numpy(self.offsets.copy()),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], prefix: str = "") -> "Tables":
        """Build tables from what :meth:`tensors` returned.

        Raises:
            FlSimError: if one is missing or damaged.
        """
        try:
            flat, lengths, offsets = (
                tensors[f"{prefix}{name}"].detach().cpu().numpy().reshape(-1).astype(np.int64)
                for name in ("cdf", "lengths", "offsets")
            )
        except KeyError as error:
            raise FlSimError(f"The entropy coder's tables lack {error}.") from None
        if not len(lengths) or lengths.min() < 1 or lengths.sum() != len(flat):
            raise FlSimError("The entropy coder's tables are damaged; save the codec anew.")
        cdf = np.zeros((len(lengths), lengths.max()), dtype=np.int32)
        cdf[np.arange(lengths.max()) < lengths[:, None]] = flat
        return cls(cdf, lengths.astype(np.int32), offsets.astype(np.int32))

    def joined(self, other: "Tables") -> "Tables":
        """Return tables with another's rows after these."""
        width = max(self.cdf.shape[1], other.cdf.shape[1])
        cdfs = [np.pad(t.cdf, ((0, 0), (0, width - t.cdf.shape[1]))) for t in (self, other)]
        return Tables(
            np.concatenate(cdfs),
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.offsets, other.offsets]),
        )

    def _shapes_fit(self) -> bool:
        rows = len(self.cdf)
        if self.cdf.ndim != 2 or not rows or {self.lengths.shape, self.offsets.shape} != {(rows,)}:
            return False
        large = np.abs(self.offsets.astype(np.int64)).max() > LARGEST_SYMBOL
        return not large and 3 <= self.lengths.min() <= self.lengths.max() <= self.cdf.shape[1]


def factorized_tables(entropy_bottleneck: "EntropyBottleneck") -> Tables:
    """Return the tables of a factorized prior: row ``c`` is channel ``c``'s distribution.

    Raises:
        FlSimError: if the distributions are not finite.
    """
    return factorized_prior(entropy_bottleneck)[0]


def factorized_prior(entropy_bottleneck: "EntropyBottleneck") -> tuple[Tables, torch.Tensor]:
    """Return a factorized prior's tables, and each channel's median: symbols count from it.

    Returns:
        Tables, and medians float32 ``[channels]``. A symbol is ``round(value - median)``.
    """
    module = calibrated(entropy_bottleneck)
    return _tables_of(module), module.quantiles.detach()[:, 0, 1].clone()


def calibrated(entropy_bottleneck: "EntropyBottleneck") -> "EntropyBottleneck":
    """Return a copy on the CPU whose quantiles and tables are those of its distributions now.

    The quantiles are found by bisection, so training needs no auxiliary loss for them.
    """
    module = copy.deepcopy(entropy_bottleneck).cpu().float()
    with torch.no_grad():
        # The bisection would never end where a distribution is not finite.
        module.quantiles.copy_(torch.tensor([-1e5, 0.0, 1e5]).expand_as(module.quantiles))
        if not module.loss().isfinite():
            raise FlSimError(_DIVERGED)
    _update(lambda: module.update(force=True, update_quantiles=True))
    return module


def gaussian_tables(gaussian_conditional: "GaussianConditional") -> Tables:
    """Return the tables of Gaussian symbols: row ``i`` has the scale ``scale_table[i]``.

    Args:
        gaussian_conditional: not changed. Without a scale table of its own it gets CompressAI's,
            64 scales from 0.11 to 256.
    """
    from compressai.models.base import get_scale_table

    module = copy.deepcopy(gaussian_conditional).cpu().float()
    if module.scale_table.numel() == 0:
        module.scale_table = get_scale_table()
    _update(module.update)
    return _tables_of(module)


def encode_symbols(symbols: NDArray[Any], indexes: NDArray[Any], tables: Tables) -> bytes:
    """Encode integers; the string says neither how many there are nor which rows they used.

    Args:
        symbols: of any shape, read in C order, at most 2**20 in size.
        indexes: each symbol's row of the tables, as many.
        tables: the distributions.

    Raises:
        FlSimError: if a symbol is too large, or there is no such row.
    """
    values, rows = np.asarray(symbols).reshape(-1), np.asarray(indexes).reshape(-1)
    if len(values) != len(rows):
        raise FlSimError(f"{len(values)} symbols cannot be encoded by {len(rows)} indexes.")
    if not len(values):
        return b""
    if len(values) > LARGEST_COUNT:
        raise FlSimError(f"An image of {len(values)} latents is too large; cut it into parts.")
    if not np.abs(values.astype(np.float64)).max() <= LARGEST_SYMBOL:
        raise FlSimError(
            f"A latent is larger than {LARGEST_SYMBOL}, which the entropy coder does not take; "
            f"the codec's weights are damaged or its training diverged."
        )
    if rows.min() < 0 or rows.max() >= len(tables.lengths):
        raise FlSimError(f"The entropy coder's tables have {len(tables.lengths)} rows, not more.")
    # The extension's buffer is too small for fewer than three symbols.
    padding = max(0, 3 - len(values))
    used, compact = np.unique(np.pad(rows, (0, padding), mode="edge"), return_inverse=True)
    string = _coder().RansEncoder().encode_with_indexes(
        np.pad(values, (0, padding), mode="edge").astype(np.int64).tolist(),
        compact.tolist(),
        [tables.cdf[row, : tables.lengths[row]].tolist() for row in used],
        tables.lengths[used].tolist(),
        tables.offsets[used].tolist(),
    )  # fmt: skip
    return _trimmed(string)


def decode_symbols(
    requests: Sequence[tuple[bytes, NDArray[Any]]], tables: Tables, more: int = 0
) -> list[Integers | str]:
    """Decode strings, each in the worker process.

    Args:
        requests: a string and each symbol's row of the tables, of any shape.
        tables: the distributions.
        more: how many symbols may follow in a string that are not asked for.

    Returns:
        For each string its symbols int32 ``[count]``, or one sentence on why there are none.
    """
    results: list[Integers | str] = []
    with _worker.lock:
        for string, indexes in requests:
            rows = np.ascontiguousarray(np.asarray(indexes).reshape(-1), dtype=np.int32)
            results.append(_decode_one(bytes(string), rows, tables, more))
    return results


def _decode_one(string: bytes, rows: Integers, tables: Tables, more: int) -> Integers | str:
    count = len(rows)
    if count + more == 0:
        return "The code has bytes, but no image." if string else rows
    if count + more > LARGEST_COUNT:
        return f"Images of {count + more} latents are too large to be decoded."
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= len(tables.lengths):
        return "The code asks for a row that the entropy coder's tables do not have."
    if not _SHORTEST <= len(string) <= longest_string(count + more):
        return f"The code has {len(string)} bytes, which {count + more} symbols cannot have."
    zeros = 4 * _words_ahead(len(string), count)
    symbols = _worker.decode(_restored(string), zeros, rows, tables)
    if isinstance(symbols, str):
        return symbols
    if np.abs(symbols.astype(np.int64)).max(initial=0) > LARGEST_SYMBOL:
        return "The code is damaged: it holds values that no image has."
    return symbols


def longest_string(symbols: int) -> int:
    """Return how many bytes a string of so many symbols has at most.

    A symbol outside its row costs 16 bits, 4 for their number and 4 each for at most 6 digits.
    """
    return 12 + 6 * symbols


def _words_ahead(size: int, count: int) -> int:
    # How far beyond a string the decoder can read. A run of digits 15 announces 15 times as many
    # digits as it has itself, 8 to a word; and among zeros a state that is left over announces at
    # most 120 digits a symbol.
    return 16 * (size // 4 + 4) + 18 * count


def _trimmed(string: bytes) -> bytes:
    # The string begins with the coder's state, 64 bits of which the upper 1 to 33 are zero. They
    # go to the end, where leading zero bytes can be left out: one to four bytes remain, so the
    # length modulo four tells how many.
    low, high, words = string[:4], string[4:8], string[8:]
    return low + words + (high.rstrip(b"\0") or b"\0")


def _restored(string: bytes) -> bytes:
    size = (len(string) - 1) % 4 + 1
    body, high = string[:-size], string[-size:]
    return body[:4] + high.ljust(4, b"\0") + body[4:]


def _is_distribution(row: Integers) -> bool:
    return bool(row[0] == 0 and row[-1] == _TOTAL and (np.diff(row) > 0).all())


def _update(update: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            update()
    except (ValueError, RuntimeError, OverflowError):
        raise FlSimError(_DIVERGED) from None


def _tables_of(module: Any) -> Tables:
    return Tables(
        module.quantized_cdf.numpy(), module.cdf_length.reshape(-1).numpy(), module.offset.numpy()
    )


def _extension() -> str:
    spec = importlib.util.find_spec("compressai")
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in glob.glob(os.path.join(folder, "ans*.so"))]
    if not files:
        raise FlSimError("CompressAI's entropy coder is not installed; install compressai 1.2.8.")
    return files[0]


def _coder() -> Any:
    # One process may load the extension once; CompressAI then finds it under its own name.
    if "compressai.ans" not in sys.modules:
        sys.modules["compressai.ans"] = rans_worker.load_coder(_extension())
    return sys.modules["compressai.ans"]


class _Stopped(Exception):
    """The worker ended, or did not answer in time."""


class _Worker:
    """The worker process of this process: started at first use, and again when it has ended."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._tables: Tables | None = None

    def decode(self, string: bytes, zeros: int, rows: Integers, tables: Tables) -> Integers | str:
        """Decode one string, followed by zero bytes, or say why not."""
        for _ in range(2):  # again, once: perhaps something else ended the worker
            try:
                return self._ask(string, zeros, rows, tables)
            except TimeoutError:
                self.stop()
                return f"The code is damaged: decoding took more than {TIME_LIMIT:g} seconds."
            except _Stopped:
                self.stop()
        return "The code is damaged: the entropy decoder ended over it."

    def stop(self) -> None:
        """End the worker, if there is one."""
        process, self._process, self._tables = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def forget(self) -> None:
        """Leave the worker to the process that this one was forked from."""
        process, self._process, self._tables = self._process, None, None
        self.lock = threading.RLock()
        if process is not None:
            process.returncode = 0  # it is no child of ours
            _close(process)

    def _ask(self, string: bytes, zeros: int, rows: Integers, tables: Tables) -> Integers:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = self._start()
        deadline = time.monotonic() + TIME_LIMIT
        header = rans_worker.HEADER.pack(b"D", len(rows), len(string), zeros)
        message = header + rows.tobytes() + string
        if self._tables is not tables:
            message = _tables_message(tables) + message
        self._send(message, deadline)
        self._tables = tables
        (count,) = struct.unpack("<I", self._receive(4, deadline))
        if count != len(rows):
            raise _Stopped
        return np.frombuffer(self._receive(4 * count, deadline), dtype="<i4").astype(np.int32)

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(rans_worker.__file__)), _extension(),
             str(MEMORY_LIMIT), str(max(1, round(TIME_LIMIT)))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            bufsize=0, process_group=0,  # Ctrl-C is for the parent
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _send(self, message: bytes, deadline: float) -> None:
        assert self._process is not None and self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(message)
        while rest:
            _wait(deadline, writing=pipe)
            try:
                rest = rest[os.write(pipe, rest) :]
            except BrokenPipeError:
                raise _Stopped from None

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        pipe, content = self._process.stdout.fileno(), bytearray()
        while len(content) < size:
            _wait(deadline, reading=pipe)
            part = os.read(pipe, size - len(content))
            if not part:
                raise _Stopped
            content += part
        return bytes(content)


def _tables_message(tables: Tables) -> bytes:
    rows = np.concatenate(tables.rows())
    header = rans_worker.HEADER.pack(b"T", len(tables.lengths), len(rows), 0)
    return header + tables.lengths.tobytes() + tables.offsets.tobytes() + rows.tobytes()


def _wait(deadline: float, reading: int | None = None, writing: int | None = None) -> None:
    waiting = select.poll()
    if reading is not None:
        waiting.register(reading, select.POLLIN)
    if writing is not None:
        waiting.register(writing, select.POLLOUT)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _close(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


_worker = _Worker()
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_worker.forget)
