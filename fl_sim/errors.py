"""Errors that a user can act on: one clear sentence each."""

import difflib
from collections.abc import Iterable
from typing import Any
from unicodedata import category

_LONGEST_NAME = 120
_DIGITS = 40


class FlSimError(ValueError):
    """What is wrong, where, and what to do, in one sentence; the command line exits with code 2."""


def printable(text: str) -> str:
    r"""Return a text from outside as a terminal, a page or a log may show it.

    Control characters, line breaks, marks that turn the direction of writing and broken surrogates
    are written as Python writes them (``\x1b``); letters of every language stay.
    """
    return "".join(
        c if c.isprintable() or category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def shown(value: Any, length: int = _LONGEST_NAME) -> str:
    """Return ``repr(value)`` for a message: printable, and not longer than ``length``.

    Integers of more digits than Python writes, and values nested too deep for it, are described.
    """
    if isinstance(value, int) and value.bit_length() > 3 * _DIGITS:
        return f"an integer of about {round(value.bit_length() * 0.30103)} digits"
    try:
        text = printable(repr(value))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that cannot be written out"
    return text if len(text) <= length else f"{text[: length - 4]}...{text[-1]}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the valid name nearest to ``name``, else all of them.

    Args:
        name: what the user wrote.
        valid: the names that would have been accepted.
    """
    names = sorted(set(valid))
    # Comparing a text of megabytes with every name would take minutes.
    close = difflib.get_close_matches(name[:_LONGEST_NAME].lower(), names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid names: {', '.join(names)}." if names else ""


def unknown_name(kind: str, name: Any, valid: Iterable[str]) -> FlSimError:
    """Build the error for a name that no ``kind`` answers to, with the nearest valid one."""
    hint = did_you_mean(name if isinstance(name, str) else "", valid)
    return FlSimError(f"There is no {kind} called {shown(name)}.{hint}")
