"""Docstrings as mkdocstrings's reader takes them: without roles, an argument a line."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`~?([^`]*)`")
_SHARED = re.compile(r"^(\s+)(\w+(?:, \w+)+):(.*(?:\n\1[ ]+\S.*)*)", re.MULTILINE)


def readable(docstring: str) -> str:
    """Return a docstring whose roles are code, and whose shared entries are one for each name."""
    text = _ROLE.sub(r"`\1`", docstring).replace("``", "`").replace("::\n", ":\n")
    return _SHARED.sub(
        lambda found: "\n".join(f"{found[1]}{name}:{found[3]}" for name in found[2].split(", ")),
        text,
    )


class Roles(Extension):
    """Makes docstrings readable when they are loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
