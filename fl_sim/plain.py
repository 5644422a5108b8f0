"""Plain values from files that somebody else wrote: how they are bounded, and how they are shown.

JSON and TOML may nest a hundred thousand lists, hold integers of five thousand digits, and names
that steer a terminal. What is read here is checked before anything walks, prints or computes it.
"""

import json
from collections.abc import Mapping
from typing import Any

from fl_sim.errors import FlSimError, printable, shown

DEEPEST = 32
"""Tables and lists inside each other; what this program writes has at most eight."""

LARGEST_INTEGER = 2**63 - 1


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON.

    Args:
        text: UTF-8 where it is bytes.
        where: what it is, for the message, for example ``"The header of the key file a.key"``.

    Returns:
        Plain values that :func:`check_plain` has passed.

    Raises:
        FlSimError: if it is no JSON, is nested too deep, or holds an integer beyond 64 bits.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise _too_deep(where, "") from None
    except ValueError as error:  # JSON's own, wrong UTF-8, and integers of too many digits
        raise FlSimError(f"{where} cannot be read as JSON: {printable(str(error))}.") from None
    check_plain(content, where)
    return content


def check_plain(value: Any, where: str) -> None:
    """Refuse plain values that nothing here could use, and that other code would fall over.

    Args:
        value: nested mappings and lists, as JSON or TOML give them.
        where: what they are, for the message.

    Raises:
        FlSimError: naming the key, if they are nested deeper than :data:`DEEPEST` or hold an
            integer beyond 64 bits.
    """
    waiting: list[tuple[Any, str, int]] = [(value, "", 0)]
    while waiting:
        inner, key, depth = waiting.pop()
        if isinstance(inner, int) and not -LARGEST_INTEGER <= inner <= LARGEST_INTEGER:
            raise FlSimError(
                f"{where}: '{printable(key)}' is {shown(inner)}, beyond the integers of 64 bits "
                f"that anything here can use."
            )
        if isinstance(inner, Mapping | list | tuple):
            if depth >= DEEPEST:
                raise _too_deep(where, key)
            pairs = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
            waiting += [
                (part, f"{key}.{name}" if key else f"{name}", depth + 1) for name, part in pairs
            ]


def _too_deep(where: str, key: str) -> FlSimError:
    at = f" at '{shown(key, 40)[1:-1]}'" if key else ""
    return FlSimError(f"{where} has more than {DEEPEST} tables or lists inside each other{at}.")
