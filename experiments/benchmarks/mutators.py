"""Ways to damage a file: as bytes, and inside the JSON, the CSV or the Parquet that it holds."""

import copy
import csv
import io
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

from fl_sim.errors import printable

TOKENS = (
    b"\x00" * 16,
    b"\xff" * 8,
    b"\x1b[2J\x1b]0;x\x07",
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"9223372036854775808",
    b"9" * 400,
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r\n",
    b"[" * 200,
    b"{" * 200,
    b'{"a":' * 60,
    b"../../etc/passwd",
    b"__init__",
    b"=1+1",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xf0\x9f\x92\xa9",
    b"\xc3\x28",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"<script>",
    b"%s%n",
)

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2,
    65536,
    10**9,
    2**31,
    2**63,
    10**30,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "none",
    "nope",
    "../../etc/passwd",
    "__init__",
    "base",
    "os",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    "=1+1",
    "x" * 5000,
    [],
    {},
    [1],
    ["a"],
    {"name": "lsb"},
    {"name": 3},
    [[[[]]]],
)


def bytes_mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """Damage one of the files once to three times, without knowing what is in it."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 3)):
        place, length = random.randrange(len(data) + 1), 1 << random.randrange(9)
        how = random.randrange(7)
        if how == 0:
            for _ in range(random.randint(1, 8)):
                if data:
                    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif how == 1:
            data = data[:place]
        elif how == 2:
            other = random.choice(seeds)
            start = random.randrange(len(other))
            data[place : place + length] = other[start : start + length]
        elif how == 3:
            data[place:place] = random.choice(TOKENS)
        elif how == 4:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif how == 5:
            data[place : place + length] = random.choice(TOKENS)
        else:
            data[place:place] = data[place : place + length]
    return bytes(data)


def json_mutated(value: Any, random: Random) -> Any:
    """Return plain values with one to three of them, at any depth, replaced, dropped or doubled."""
    content = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return _value(random)
        parent, key = random.choice(places)
        how = random.randrange(8)
        if how == 0:
            del parent[key]
        elif how == 1 and isinstance(parent, dict):
            parent[random.choice(("x", "", "name", "__class__", "seed"))] = parent[key]
        elif how == 2:
            _, other = random.choice(places)
            parent[key] = other
        elif how == 3:
            parent[key] = _deep(random.choice((5, 31, 40, 250)))
        else:
            parent[key] = _value(random)
    return content


def safetensors_mutated(seeds: Sequence[bytes], random: Random, inner: str) -> bytes:
    """Change values of a safetensors header, mostly inside the JSON that it holds as a text.

    Args:
        seeds: honest files.
        random: where randomness is drawn from.
        inner: name of that text in the header's metadata.
    """
    seed = random.choice(seeds)
    (length,) = struct.unpack("<Q", seed[:8])
    header = json.loads(seed[8 : 8 + length])
    if random.random() < 0.8:
        content = json_mutated(json.loads(header["__metadata__"][inner]), random)
        header["__metadata__"][inner] = json.dumps(content)
    else:
        header = json_mutated(header, random)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + seed[8 + length :]


def csv_mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """Change, drop or double cells and rows of a CSV file."""
    rows = list(csv.reader(io.StringIO(random.choice(seeds).decode())))
    for _ in range(random.randint(1, 4)):
        row = random.choice(rows)
        place = random.randrange(len(row)) if row else 0
        how = random.randrange(6)
        if how == 0 and row:
            del row[place]
        elif how == 1:
            row.insert(place, "extra")
        elif how == 2:
            rows.remove(row)
            rows = rows or [[""]]
        elif how == 3:
            rows.append(list(row))
        elif how == 4:
            for other in rows[1:]:  # a whole column
                if place < len(other):
                    other[place] = row[place] if row else ""
        elif row:
            row[place] = _text(_value(random))
    out = io.StringIO()
    csv.writer(out, lineterminator=random.choice(("\n", "\n", "\r\n"))).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def parquet_mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """Change values, types and names of columns of a Parquet table, its rows and its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = pq.read_table(io.BytesIO(random.choice(seeds)))
    columns = [(name, read[name].to_pylist()) for name in read.column_names]
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(columns))
        name, values = columns[place]
        how = random.randrange(6)
        if how == 0 and len(columns) > 1:
            del columns[place]
        elif how == 1:
            columns[place] = (_text(_value(random)), values)
        elif how == 2:
            rows = random.choice((0, 1, 2))
            columns = [(other, cells[:rows]) for other, cells in columns]
        elif how == 3 and values:
            values[random.randrange(len(values))] = random.choice((None, _value(random)))
        else:
            columns[place] = (name, [_value(random)] * len(values))
    arrays = [_array(values) for _, values in columns]
    table = pa.table(arrays, names=[printable(name) for name, _ in columns])
    if random.random() < 0.5:
        junk = json.dumps(_value(random)).encode()
        table = table.replace_schema_metadata({b"pandas": junk, b"x": b"\xff\x00"})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _array(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        array = pa.array(values)
        if not pa.types.is_nested(array.type):
            return array
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        pass
    return pa.array([printable(_text(value))[:200] for value in values])


def _value(random: Random) -> Any:
    return copy.deepcopy(random.choice(VALUES))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            found += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    return found


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
