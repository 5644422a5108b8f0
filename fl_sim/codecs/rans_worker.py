"""The entropy decoder's own process: CompressAI's rANS decoder and the standard library only.

Run by path as ``python -I -S rans_worker.py <ans extension> <bytes of memory> <seconds a string>``;
imports nothing of this package. The decoder trusts its input: a damaged string can make it read
where it should not, or for long. Here that costs this process, which the parent starts again.

Everything is little-endian and length-prefixed; see ``_Worker`` in ``entropy.py``.
"""

import resource
import struct
import sys
import time
from array import array
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from typing import Any, BinaryIO

HEADER = struct.Struct("<cIII")
"""Of a request: ``T`` (tables: rows, entries of all rows, 0) or ``D`` (decode: symbols, bytes of
the string, zero bytes to add)."""

REPLY = struct.Struct("<I")
"""Of a reply: how many symbols follow."""

Rows = list[list[int]]


def load_coder(path: str) -> Any:
    """Load CompressAI's extension ``ans`` from its file, without importing its package."""
    loader = ExtensionFileLoader("compressai.ans", path)
    module = loader.create_module(ModuleSpec("compressai.ans", loader, origin=path))
    loader.exec_module(module)
    return module


def limit(memory: int) -> None:
    """Bound this process's memory; write no core file if it dies."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def limit_time(seconds: int) -> None:
    """Let the system end this process when it has computed for ``seconds`` more."""
    until = int(time.process_time()) + seconds + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def take(source: BinaryIO, size: int) -> bytes:
    """Read exactly ``size`` bytes; the parent's end is the end of this process too."""
    content = source.read(size)
    if len(content) != size:
        raise SystemExit(0)
    return content


def integers(source: BinaryIO, count: int) -> "array[int]":
    """Read ``count`` 32-bit integers."""
    result = array("i")
    result.frombytes(take(source, 4 * count))
    return result


def read_tables(source: BinaryIO, count: int, entries: int) -> tuple[Rows, list[int], list[int]]:
    """Read the tables: each row's cumulative frequencies, lengths, offsets."""
    lengths, offsets = integers(source, count).tolist(), integers(source, count).tolist()
    flat, rows, first = integers(source, entries).tolist(), [], 0
    for length in lengths:
        rows.append(flat[first : first + length])
        first += length
    return rows, lengths, offsets


def serve(coder: Any, source: BinaryIO, sink: BinaryIO, seconds: int) -> None:
    """Answer requests until the parent closes its end."""
    decoder = coder.RansDecoder()
    tables: tuple[Rows, list[int], list[int]] = ([], [], [])
    while True:
        kind, first, second, zeros = HEADER.unpack(take(source, HEADER.size))
        if kind == b"T":
            tables = read_tables(source, first, second)
            continue
        indexes, string = integers(source, first), take(source, second) + bytes(zeros)
        rows, lengths, offsets = tables
        used = set(indexes)
        # The extension copies every row at each call; those not used can be empty.
        rows = [row if index in used else [] for index, row in enumerate(rows)]
        limit_time(seconds)
        symbols = decoder.decode_with_indexes(string, indexes.tolist(), rows, lengths, offsets)
        sink.write(REPLY.pack(len(symbols)) + array("i", symbols).tobytes())
        sink.flush()


if __name__ == "__main__":
    limit(int(sys.argv[2]))
    serve(load_coder(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[3]))
