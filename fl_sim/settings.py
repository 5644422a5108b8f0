"""Settings: pydantic models that refuse unknown keys, for every component and for scenarios."""

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_sim.errors import FlSimError, did_you_mean


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, numbers not made out of strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


def parse(settings: type[S], values: dict[str, Any], where: str) -> S:
    """Validate ``values`` as ``settings``.

    Args:
        settings: the settings class.
        values: keys and values as read from TOML.
        where: how the table is called in the message, for example ``"[attack]"``.

    Raises:
        FlSimError: one sentence for the first thing that is wrong, with the nearest valid key.
    """
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise FlSimError(explain(error, settings, where)) from None


def explain(error: ValidationError, settings: type[BaseModel], where: str) -> str:
    """Say the first problem of a pydantic error in one sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "value"
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(settings, first["loc"][:-1])
        return f"{where} has no key '{key}'.{did_you_mean(str(first['loc'][-1]), valid)}"
    if first["type"] == "missing":
        return f"{where} lacks the key '{key}'."
    if first["type"] == "value_error":
        text = str(first.get("ctx", {}).get("error", first["msg"]))
        return text if text.startswith(where) else f"{where}: {text}"
    given = first.get("input")
    return f"{where}: '{key}' is {given!r}, but {_lower(first['msg'])}."


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


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
