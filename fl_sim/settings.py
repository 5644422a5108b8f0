"""Settings: pydantic models that refuse unknown keys, for every component and for scenarios.

What cannot run is refused by its key: no number is infinite or not a number, and a count or a
factor without a bound of its own ends at :data:`MOST` or :data:`FURTHEST`.
"""

from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from fl_sim.errors import FlSimError, did_you_mean, printable, shown
from fl_sim.plain import LARGEST_INTEGER, check_plain

MOST = 1_000_000
"""Largest integer of a key that gives no bound of its own."""

FURTHEST = 1e30
"""Largest size of a float of a key that gives no bound of its own; float32 itself ends at 3e38."""

MOST_EPOCHS = 100_000
"""Passes over the images, in any training."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
"""What randomness follows from: below 2**63."""


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, numbers finite and within reach."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_numbers(cls, values: Any) -> Any:
        """Refuse ``true`` and texts where a number is wanted; pydantic would make numbers of them.

        Raises:
            ValueError: naming the key.
        """
        known = _kinds_of_fields(cls)
        for key, value in values.items() if isinstance(values, dict) else ():
            kinds = known.get(key, frozenset())
            wanted = {int, float} & kinds
            if wanted and isinstance(value, bool) and bool not in kinds:
                raise ValueError(f"'{key}' is {str(value).lower()}, but it should be a number")
            if wanted and isinstance(value, str) and str not in kinds and _is_number(value):
                raise ValueError(f"'{key}' is the text {value!r}; write the number without quotes")
        return values

    @model_validator(mode="after")
    def _within_reach(self) -> Self:
        """Refuse numbers that no computation could use, by key.

        Raises:
            ValueError: naming the key and the bound.
        """
        for key in _without_bound(type(self)):
            for number in _numbers(getattr(self, key)):
                most = MOST if isinstance(number, int) else FURTHEST
                if abs(number) > most:
                    raise ValueError(
                        f"'{key}' is {shown(number)}, but input should be at most {most:g}"
                    )
        return self

    def plain(self) -> dict[str, Any]:
        """Return keys and values as JSON holds them, as a scenario keeps them."""
        return self.model_dump(mode="json")

    def differing(self) -> dict[str, Any]:
        """Return the keys whose values are not their defaults, and those without one, as JSON.

        A table within is given by what differs within it. So a key that is new, with a default,
        changes nothing of what this gives for values of before.
        """
        plain, found, defaults = self.plain(), {}, _defaults(type(self))
        for key in type(self).model_fields:
            if key not in plain:  # left to what is read, the size of a file's images for example
                continue
            value = _differing(getattr(self, key), plain[key])
            if key not in defaults or value != defaults[key]:
                found[key] = value
        return found


S = TypeVar("S", bound=Settings)


def parse(settings: type[S], values: Any, where: str) -> S:
    """Validate ``values`` as ``settings``.

    Args:
        settings: the settings class.
        values: keys and values as read from TOML or JSON.
        where: how the table is called in the message, for example ``"[attack]"``.

    Raises:
        FlSimError: one sentence for the first thing that is wrong, with the nearest valid key.
    """
    check_plain(values, where)
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise FlSimError(explain(error, settings, where)) from None


def explain(error: ValidationError, settings: type[BaseModel], where: str) -> str:
    """Say the first problem of a pydantic error in one sentence."""
    first = error.errors()[0]
    key = printable(".".join(str(part) for part in first["loc"])) or "value"
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(settings, first["loc"][:-1])
        return f"{where} has no key '{key}'.{did_you_mean(str(first['loc'][-1]), valid)}"
    if first["type"] == "missing":
        return f"{where} lacks the key '{key}'."
    if first["type"] == "value_error":
        text = str(first.get("ctx", {}).get("error", first["msg"]))
        text = text if text.endswith((".", "?", "!")) else f"{text}."
        return text if text.startswith(where) else f"{where}: {text}"
    return f"{where}: '{key}' is {shown(first.get('input'))}, but {_lower(first['msg'])}."


def _valid_keys(settings: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = settings.model_fields.get(str(part))
        annotation = field.annotation if field else None
        kinds = (annotation, *get_args(annotation))  # the second of a table that may be left out
        tables = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not tables:
            return []
        settings = tables[0]
    return list(settings.model_fields)


def _differing(value: Any, plain: Any) -> Any:
    """Return a value as JSON holds it, and of tables in it what differs from their defaults."""
    if isinstance(value, Settings):
        return value.differing()
    if isinstance(value, tuple | list):
        return [_differing(*pair) for pair in zip(value, plain, strict=True)]
    if isinstance(value, dict):
        return {str(key): _differing(inner, plain[str(key)]) for key, inner in value.items()}
    return plain


@cache
def _defaults(settings: type[Settings]) -> dict[str, Any]:
    """Return the defaults of those keys that have one, as JSON holds them; not to be changed."""
    found = {}
    for key, field in settings.model_fields.items():
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            found[key] = _differing(default, to_jsonable_python(default))
    return found


@cache
def _kinds_of_fields(settings: type[Settings]) -> dict[str, frozenset[type]]:
    fields = settings.model_fields.items()
    return {key: frozenset(_kinds(field.annotation)) for key, field in fields}


@cache
def _without_bound(settings: type[Settings]) -> list[str]:
    """Return the keys whose numbers have no upper bound of their own."""
    fields = settings.model_fields.items()
    return [k for k, field in fields if not any(isinstance(b, Le | Lt) for b in _bounds(field))]


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")


def _kinds(annotation: Any) -> Iterator[type]:
    """Yield the types that an annotation allows beside each other; literals are none."""
    if isinstance(annotation, type):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)


def _bounds(field: Any) -> Iterator[Any]:
    """Yield what a field or an annotation says of its values' bounds, at any depth of its types."""
    if isinstance(field, FieldInfo):
        yield from field.metadata
        yield from _bounds(field.annotation)
    else:
        yield field
        for part in get_args(field):
            yield from _bounds(part)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _numbers(part)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
