"""Single keys of nested settings, as the command line changes them."""

import tomllib
from typing import Any

from fl_sim.data import dataset_settings
from fl_sim.errors import FlSimError, shown


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply one ``key=value`` of the command line, in place; the value is TOML, or else a string.

    Raises:
        FlSimError: if it is not ``key=value``, or the key has a parent without keys.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise FlSimError(
            f"--set takes key=value, for example attack.images=32, not {shown(override)}."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, or what no scenario may hold
        value = text.strip()
    *path, last = key.strip().split(".")
    table = values
    for part in path:
        inner = table.setdefault(part, {})
        if isinstance(inner, str):  # a component given by its name alone
            inner = table[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise FlSimError(f"--set {override}: '{part}' has no keys of its own.")
        table = inner
    known = table.get(last)
    if isinstance(known, dict) and isinstance(value, str):
        if last == "dataset" and value != known.get("name"):  # keys of the other one alone go
            own = {"name", *dataset_settings(value).model_fields}
            known = table[last] = {key: known[key] for key in known if key in own}
        known["name"] = value  # --set attack=none on a table
    else:
        table[last] = value
