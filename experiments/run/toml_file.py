"""Scenario and grid files: TOML as people's editors save it, and what is wrong with it in words."""

import codecs
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from fl_sim.errors import FlSimError, printable, shown
from fl_sim.plain import check_plain

_LONGEST_FILE = 16 << 20
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Read a TOML file, with or without the mark that Windows editors put before UTF-8.

    Args:
        path: of the file.
        kind: what it is, for messages, for example ``"scenario"``.

    Raises:
        FlSimError: if it is missing, a folder, in another encoding, or no TOML that can be used.
    """
    name = f"The {kind} file {printable(str(path))}"
    if os.path.isdir(path):
        raise FlSimError(f"{name} is a folder; give the path of a TOML file.")
    if not os.path.isfile(path):
        raise FlSimError(f"{name} does not exist.")
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise FlSimError(f"{name} cannot be read: {error.strerror}.") from None
    if len(content) > _LONGEST_FILE:
        raise FlSimError(f"{name} is larger than {_LONGEST_FILE >> 20} MiB; it is no {kind} file.")
    values = _parsed(_text(content, name), name)
    check_plain(values, name)
    return values


def _text(content: bytes, name: str) -> str:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise FlSimError(f"{name} is saved as {encoding}; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content[:2].count(0) == 1:
            raise FlSimError(f"{name} is saved as UTF-16; save it as UTF-8.") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise FlSimError(f"{name} is not saved as UTF-8 (line {line}); save it as UTF-8.") from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    if text[:2].count("\0") == 1:
        raise FlSimError(f"{name} is saved as UTF-16; save it as UTF-8.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FlSimError(
            f"{name} cannot be read: {printable(str(error))}.{_hint(text, error)}"
        ) from None
    except RecursionError:
        raise FlSimError(f"{name} has too many lists or tables inside each other.") from None
    except ValueError as error:
        raise FlSimError(_endless(text, name) or f"{name} cannot be read: {error}.") from None


def _endless(text: str, name: str) -> str:
    """Name the key whose integer has more digits than Python turns into a number."""
    for line in text.splitlines():
        if re.search(r"\d[\d_]{4000}", line):
            return f"{name}: {shown(line.partition('=')[0].strip(), 40)} has thousands of digits."
    return ""


def _hint(text: str, error: Exception) -> str:
    """Say what to do about a path with backslashes in a string that takes them for escapes."""
    said = str(error).lower()
    if not any(word in said for word in ("hex value", "escape", "backslash")):
        return ""
    digits = said.rpartition("(at line ")[2].partition(",")[0]
    lines = text.splitlines()
    number = int(digits) if digits.isdecimal() and int(digits) <= len(lines) else 0
    at = f" {shown(lines[number - 1].strip(), 80)}" if number else ""
    return (
        f" A backslash in \"...\" begins an escape; write paths in '...' or with / (line"
        f" {digits}:{at})."
    )
