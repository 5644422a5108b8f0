"""Text cells of CSV files, so that a spreadsheet shows them and computes nothing.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return
for a formula; a label from somebody's file may begin so. Such texts get an apostrophe in front,
which every reader here takes off again. Numbers stay numbers, and so does a lone ``-``.

Source: OWASP, "CSV Injection".
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_RUN = re.compile(r"'*(?:[=+@\t\r]|-.)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def guarded(text: str) -> str:
    """Return a text cell as it is written to a CSV file."""
    return f"'{text}" if _RUN.match(text) and not _NUMBER.fullmatch(text) else text


def read_texts(path: Path) -> "pd.DataFrame":
    """Read a CSV file as texts throughout: "NA" is a text, and a missing cell only is missing."""
    import pandas as pd  # takes a second, which a process that only trains does not pay

    table = pd.read_csv(path, dtype="str", keep_default_na=False)
    table.columns = pd.Index([unguarded(str(name)) for name in table.columns])
    for name in dict.fromkeys(table.columns):
        if isinstance(table[name], pd.Series):
            table[name] = each_text(table[name], unguarded)
    return table


def each_text(column: "pd.Series[Any]", change: Callable[[str], str]) -> "pd.Series[Any]":
    """Return a column with its texts changed; a column that nothing changes in is itself.

    Args:
        column: of any type; what is no text stays.
        change: :func:`guarded` or :func:`unguarded`.
    """
    texts = [text for text in column.unique() if isinstance(text, str)]
    changed = {text: new for text in texts if (new := change(text)) != text}
    if not changed:
        return column
    return column.map(lambda cell: changed.get(cell, cell) if isinstance(cell, str) else cell)


def unguarded(text: str) -> str:
    """Return the text of a cell of a CSV file; the inverse of :func:`guarded`."""
    return text[1:] if text[:1] == "'" and guarded(text[1:]) == text else text
