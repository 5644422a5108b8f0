"""The one long table: a row a number, appended durably; everything else is computed from it."""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_sim.cells import guarded, read_texts
from fl_sim.errors import FlSimError, printable
from fl_sim.files import Stand, cut, locked, write_atomically, writing
from fl_sim.metrics.vocabulary import column_order, natural
from fl_sim.words import NO_EXTRACTION, SUMMED_UP

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "scenario",
    "seed",
    "mode",
    "dataset",
    "model",
    "attack",
    "defense",
    "aggregator",
    "clients",
    "round",
    "stage",
    "extraction",
    "metric",
    "value",
)
STAGES = ("upload", "door", "aggregate", "release")
FACTS = ("mode", "dataset", "model", "attack", "defense", "aggregator", "seed")
"""Columns that tell runs apart, as people do."""
_INTEGERS = ("seed", "clients", "round")
_HEADER = (",".join(COLUMNS) + "\n").encode()

Value = str | int | float


class Results:
    """The table as a CSV file that several processes may append to.

    Each :meth:`add` is one write of whole lines, on disk when it returns, so a killed run loses at
    most the rows in flight; half a line that a killed run left is cut off on opening. A text that a
    spreadsheet would run has an apostrophe in front in the file, see :mod:`fl_sim.cells`.

    Args:
        path: the CSV file; made, with its header, where there is none.
        common: columns that all rows added here share.

    Raises:
        FlSimError: if the file is another kind of file, or ``common`` has an unknown column.
    """

    def __init__(self, path: Path, common: Mapping[str, Value] | None = None) -> None:
        self.path = path
        self.common = dict(common or {})
        _check_columns(self.common)
        with self._locked():
            self._repair()

    def add(self, rows: Iterable[Mapping[str, Value]], **shared: Value) -> int:
        """Append rows; they are on disk when this returns. Returns how many.

        Args:
            rows: columns by name; with ``common`` and ``shared`` all but ``extraction``, which is
                ``"-"`` unless given, must be there.
            shared: columns that these rows share, for example ``round`` and ``stage``.

        Raises:
            FlSimError: if a column is missing or unknown, or a value is not of its type.
        """
        base = {"extraction": NO_EXTRACTION, **self.common, **shared}
        lines = [_line({**base, **row}) for row in rows]
        if not lines:
            return 0
        with self._locked():
            if _torn(self.path):
                self._repair()
            _append("".join(lines).encode(), self.path)
        return len(lines)

    def stand(self) -> Stand:
        """Return how far the table has come."""
        with self._locked():
            return Stand.of(self.path)

    def rewind(self, stand: Stand | None) -> None:
        """Cut off what was added since, or all rows.

        Raises:
            FlSimError: if the table does not begin as it did then.
        """
        with self._locked():
            if stand is None:
                write_atomically(self.path, _HEADER)
            else:
                stand.cut(self.path)

    def table(self) -> "pd.DataFrame":
        """Return the whole table: integers, ``value`` as float64 exactly as added, else strings."""
        with self._locked():
            return read_table(self.path)

    def write_parquet(self, path: Path) -> Path:
        """Write the table as Parquet, whole or not at all. Returns ``path``."""
        buffer = io.BytesIO()
        self.table().to_parquet(buffer, index=False)
        return write_atomically(path, buffer.getvalue())

    def _locked(self) -> AbstractContextManager[None]:
        """Hold off other processes; the lock lies beside, since the table may be replaced."""
        return locked(self.path.with_name(f".{self.path.name}.lock"))

    def _repair(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        known = whole.startswith(_HEADER) if whole else _HEADER.startswith(content)
        if not known:
            raise _no_table(self.path, "its first line does not name the columns")
        if not whole:
            write_atomically(self.path, _HEADER)
        elif len(whole) < len(content):
            cut(self.path, len(whole))


def read_table(path: Path) -> "pd.DataFrame":
    """Read a results table; see :meth:`Results.table`.

    Raises:
        FlSimError: if it is missing or not a results table.
    """
    if not os.path.isfile(path):
        raise FlSimError(f"The results table {printable(str(path))} does not exist.")
    try:
        # As text first, since pandas would fill a row that is too short with missing values.
        texts = read_texts(path)
    except Exception as error:  # pandas has its own for each way to be no table
        raise _no_table(path, printable(str(error).partition("\n")[0])) from None
    if tuple(texts.columns) != COLUMNS:
        raise _no_table(path, "its first line does not name the columns")
    return typed_columns(texts, COLUMNS, f"The results table {printable(str(path))}")


def typed_columns(table: "pd.DataFrame", text: Sequence[str], where: str) -> "pd.DataFrame":
    """Return a long table with the types of its columns, whatever types it was read with.

    Args:
        table: with the columns of :data:`COLUMNS`; of a sweep also a cell and labels.
        text: the columns wanted, in their order; of those that :data:`COLUMNS` gives no type, text.
        where: what the table is, for messages.

    Raises:
        FlSimError: naming the column that has a cell of another type.
    """
    import pandas as pd

    columns = {}
    for name in text:
        column = table[name]
        if column.isna().any() and (name != "value" or pd.api.types.is_string_dtype(column)):
            row = int(column.isna().to_numpy().argmax()) + 2
            raise FlSimError(f"{where} is damaged: row {row} has nothing in '{name}'.")
        try:
            if name in (*_INTEGERS, "value") and not _numeric(column):
                raise TypeError(f"its type is {column.dtype}")
            if name in _INTEGERS:
                columns[name] = _whole(column)
            elif name == "value":
                columns[name] = column.astype("float64")
            else:
                columns[name] = column.astype("str")
        except Exception as error:  # pandas and pyarrow have their own for each type
            said = printable(str(error).partition("\n")[0])[:120]
            raise FlSimError(
                f"{where} is damaged: '{name}' is no number throughout ({said})."
            ) from None
    return pd.DataFrame(columns)


def _numeric(column: "pd.Series[Any]") -> bool:
    """Whether a column holds numbers, or texts of them, and not lists or dates."""
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)


def _whole(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a column as int64; raises ValueError where it has others."""
    whole = column.astype("int64")
    if column.dtype.kind in "fu" and not bool((whole == column).all() and (whole >= 0).all()):
        raise ValueError("it has fractions, or integers beyond 64 bits")
    return whole


def _no_table(path: Path, what: str) -> FlSimError:
    return FlSimError(f"The file {printable(str(path))} is not a results table of fl-sim: {what}.")


def without_timings(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table without the metric ``seconds``: what two equal runs share bit for bit."""
    timings = table["metric"].str.partition("[")[0] == "seconds"
    return table[~timings].reset_index(drop=True)


def summary(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a run, round and stage, for people to read.

    The first columns, :data:`FACTS`, tell runs apart, so that the summaries of several runs may be
    put below each other; where two scenarios differ in their settings alone, ``scenario`` stands
    before them. Stages stand in the order of the way, single attackers' after them by number.

    A metric of extractions has three columns: ``"<metric> raw"``, as the key gives it; ``"<metric>
    chosen"``, of the extraction that an attacker would choose without a true image; and ``"<metric>
    strongest"``, picked with the true images, metric by metric: an upper end that no attacker can
    pick himself. The others have one.

    Args:
        table: as :meth:`Results.table` returns it.
    """
    rows = table[table["extraction"].isin([NO_EXTRACTION, *SUMMED_UP])]
    suffix = (" " + rows["extraction"]).where(rows["extraction"] != NO_EXTRACTION, "")
    places = {stage: place for place, stage in enumerate(sorted(set(rows["stage"]), key=in_order))}
    rows = rows.assign(column=rows["metric"] + suffix, order=rows["stage"].map(places))
    several = rows["scenario"].nunique() > len(rows[[*FACTS[:-1]]].drop_duplicates())
    keys = [*(["scenario"] if several else []), *FACTS, "round", "order", "stage"]
    wide = rows.pivot_table(index=keys, columns="column", values="value", aggfunc="mean")
    names: list[str] = sorted(map(str, wide.columns), key=column_order)
    wide = wide[names]
    wide.columns.name = None
    return wide.reset_index().drop(columns="order")


def in_order(stage: str) -> tuple[int, tuple[tuple[int, str], ...]]:
    """Return a key that sorts stages: upload, aggregate, release, then single attackers'."""
    name, _, hospital = stage.partition(":")
    place = STAGES.index(name) if name in STAGES else len(STAGES)
    return place + (len(STAGES) + 1 if hospital else 0), natural(hospital)


def _check_columns(values: Mapping[str, Value]) -> None:
    for name in values:
        if name not in COLUMNS:
            raise FlSimError(
                f"The results table has no column '{name}'; its columns are {', '.join(COLUMNS)}."
            )


def _line(row: Mapping[str, Value]) -> str:
    _check_columns(row)
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise FlSimError(f"A row of results lacks the column '{missing[0]}'.")
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([_text(name, row[name]) for name in COLUMNS])
    return out.getvalue()


def _text(name: str, value: Value) -> str:
    try:
        if name == "value":
            # The shortest text that reads back as the very same number.
            return repr(float(value))
        if name in _INTEGERS:
            if int(value) != float(value):
                raise ValueError
            return str(int(value))
    except (TypeError, ValueError):
        raise FlSimError(f"The results column '{name}' cannot hold {value!r}.") from None
    text = str(value)
    # A line break inside a line would make a torn line look whole.
    if "\n" in text or "\r" in text:
        raise FlSimError(f"The results column '{name}' cannot hold a line break: {text!r}.")
    return guarded(text)


def _torn(path: Path) -> bool:
    """Whether another process was killed in the middle of a line since this one opened the file."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _append(content: bytes, path: Path) -> None:
    """Append and make durable; where the disk is full, leave the file as it was."""
    with writing(path), open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
