"""Errors that a user can act on: one clear sentence each."""

import difflib
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST_NAME = 120
_DIGITS = 40
_LISTED = 24

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that print nothing, or steer what prints: controls, formats, surrogates."""


class FlSimError(ValueError):
    """What is wrong, where, and what to do, in one sentence; the command line exits with code 2."""


def legible(text: str, limit: int | None = 200) -> str:
    r"""Return text from outside as it may be printed: escapes for what steers a terminal or a page.

    Control characters, escapes, bidirectional and zero-width marks and lone surrogates become
    ``\x1b`` and the like; quotes, brackets and everything that prints stay.

    Args:
        text: from a file, a setting or anything else that somebody else wrote.
        limit: most characters of the result, the last a ``…`` where text was cut; ``None`` for all.
    """
    head = text if limit is None else text[: limit + 1]
    if not (head.isascii() and head.isprintable()):
        head = "".join(_escaped(character) for character in head)
    return head if limit is None or len(head) <= limit else head[: limit - 1] + "…"


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return character.encode("unicode_escape").decode("ascii")
    return character


def printable(text: str) -> str:
    """Return all of a text from outside as it may be printed, see :func:`legible`."""
    return legible(text, None)


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

    Of very many only the first are named.

    Args:
        name: what the user wrote.
        valid: the names that would have been accepted.
    """
    names = sorted(set(valid))
    # Comparing a text of megabytes with every name would take minutes.
    close = difflib.get_close_matches(name[:_LONGEST_NAME].lower(), names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" Valid names: {', '.join(names[:_LISTED])}{more}." if names else ""


def unknown_name(kind: str, name: Any, valid: Iterable[str]) -> FlSimError:
    """Build the error for a name that no ``kind`` answers to, with the nearest valid one."""
    hint = did_you_mean(name if isinstance(name, str) else "", valid)
    return FlSimError(f"There is no {kind} called {shown(name)}.{hint}")
