"""Errors that a user can act on: one clear sentence each."""

import difflib
import unicodedata
from collections.abc import Iterable

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


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the valid name nearest to ``name``, else all of them.

    Args:
        name: what the user wrote.
        valid: the names that would have been accepted.
    """
    names = sorted(set(valid))
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid names: {', '.join(names)}." if names else ""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> FlSimError:
    """Build the error for a name that no ``kind`` answers to, with the nearest valid one."""
    return FlSimError(f"There is no {kind} called '{name}'.{did_you_mean(name, valid)}")
