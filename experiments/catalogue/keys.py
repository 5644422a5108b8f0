"""The keys of a settings class in words: type, range, default, and what the docstring says."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from fl_sim.component import Component
from fl_sim.plain import LARGEST_INTEGER
from fl_sim.settings import Settings

_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
REQUIRED, NOT_GIVEN, BELOW = "required", "not given", "a table, see below"
WITHOUT = (REQUIRED, NOT_GIVEN, BELOW)
"""What stands for a default where there is none to write."""

_SECTIONS = ("Args:", "Returns:", "Raises:", "Example:", "Yields:")


@dataclass(frozen=True)
class Key:
    """A key as it is shown.

    Args:
        name: dotted for a key of a table inside.
        default: as TOML writes it; one of :data:`WITHOUT` where there is none.
        values: type, range and choices in words.
        meaning: what the docstring says.
    """

    name: str
    default: str
    values: str
    meaning: str


def keys_of(settings: type[Settings], parent: str = "") -> Iterator[Key]:
    """Yield every key, inherited ones included; a table's own keys follow it."""
    said = arguments(settings)
    for name, field in settings.model_fields.items():
        inner = _table_in(field.annotation)
        values = " or ".join(_words(field.annotation, tuple(field.metadata)))
        yield Key(parent + name, _default(field), values, said.get(name, ""))
        if inner is not None:
            yield from keys_of(inner, f"{parent}{name}.")


def arguments(settings: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each argument."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        lines = section(kind.__doc__ or "", "Args:")
        names: list[str] = []
        for line in lines:
            begins = re.match(r"(\w+(?:, \w+)*): (.*)", line)
            if begins:
                names = begins[1].split(", ")
                found |= dict.fromkeys(names, begins[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: clean(text) for name, text in found.items()}


def section(docstring: str, title: str) -> list[str]:
    """Return the lines of one section of a docstring, without its own indentation."""
    lines = inspect.cleandoc(docstring).splitlines()
    if title not in lines:
        return []
    rest = lines[lines.index(title) + 1 :]
    end = next((n for n, line in enumerate(rest) if line and not line.startswith(" ")), len(rest))
    return inspect.cleandoc("\n" + "\n".join(rest[:end])).splitlines()


_ITEM = re.compile(r"^\d\. .*(?:\n {3}.*\S.*)*", re.MULTILINE)
"""An item of a numbered list, with the lines that go on below it."""


def prose(docstring: str) -> str:
    """Return a docstring's paragraphs and numbered items before its sections, a line each."""
    text = inspect.cleandoc(docstring)
    for title in _SECTIONS:
        text = text.partition(f"\n{title}\n")[0]
    text = _ITEM.sub(lambda item: " ".join(item[0].split()), clean(text.strip()))
    return re.sub(r"(?<=\S)\n(?=[^\s*-])(?!\d\. )", " ", text)


def clean(text: str) -> str:
    """Return text without the marks of a documentation generator."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    return text.replace("``", "").replace("::\n", ":\n")


def written(value: Any) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, Component):
        value = {"name": value.name, **value.settings} if value.settings else value.name
    if isinstance(value, Settings):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list | set | frozenset):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    return json.dumps(value) if isinstance(value, bool) else f"{value!r}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    if value is None:
        return NOT_GIVEN
    return BELOW if _table_in(field.annotation) else written(value)


def _table_in(annotation: Any) -> type[Settings] | None:
    """Return the settings that a key's value is a table of, if it is one."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Component:
            return kind
    return None


def _words(annotation: Any, bounds: tuple[Any, ...] = ()) -> Iterator[str]:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _words(inside[0], (*bounds, *annotation.__metadata__))
    elif origin in (Union, UnionType):
        for one in inside:
            if one is not NoneType:
                yield from _words(one, bounds)
    elif origin is Literal:
        yield " or ".join(map(written, inside))
    elif origin in (tuple, list, set, frozenset):
        yield f"list of: {' or '.join(_words(inside[0]))}" if inside else "list"
    elif annotation in (int, float):
        yield " ".join((_PLAIN[annotation], *_range(bounds))).strip()
    elif annotation is Component:
        yield "name, or table of name and settings"
    else:
        tables = origin is dict or annotation is dict or _table_in(annotation)
        yield _PLAIN.get(annotation, "table" if tables else "any value")


def _range(bounds: tuple[Any, ...]) -> Iterator[str]:
    for bound in _flat(bounds):
        for kind, word in ((Ge, "from"), (Gt, "above"), (Le, "to"), (Lt, "below")):
            limit: Any = getattr(bound, kind.__name__.lower(), None)
            if isinstance(bound, kind) and limit != LARGEST_INTEGER:
                yield f"{word} {limit:,}" if isinstance(limit, int) else f"{word} {limit:g}"


def _flat(bounds: tuple[Any, ...]) -> Iterator[Any]:
    for bound in bounds:
        yield from bound.metadata if isinstance(bound, FieldInfo) else (bound,)
