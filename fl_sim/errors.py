"""Errors that a user can act on: one clear sentence each."""

import difflib
from collections.abc import Iterable


class FlSimError(ValueError):
    """What is wrong, where, and what to do, in one sentence; the command line exits with code 2."""


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
