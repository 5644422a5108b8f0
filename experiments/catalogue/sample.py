"""An example for every component and table: lines of a scenario that can be used as they are."""

from collections.abc import Iterator
from typing import Any

from experiments.catalogue.contents import TABLE, Details, Item
from experiments.catalogue.keys import section, written
from fl_sim.settings import Settings

_OUTSIDE = 'external = "pneumoniamnist"'
_SHOWN = 2
_DEC = ("[attack]", 'name = "dec"')
_TABLES = {
    "dataset": "dataset",
    "model": "model",
    "attack": "attack",
    "defence": "defense",
    "membership attack": "membership",
}
_FLAT = ("strategy", "partition", "engine")


def sample(item: Item, details: Details) -> str:
    """Return lines of TOML that choose a component, or have a table's first keys.

    A settings class whose keys need one another says in its docstring, under ``Example:``, which;
    of any other, the first few of its own keys are shown at their defaults. A metric has no key.
    """
    if item.kind == "metric":
        return ""  # all that there are are measured
    keys = list(_keys(details.settings))
    if item.kind == TABLE:
        return "\n".join((f"[{item.name}]", *keys))
    name = written(item.name)
    if item.kind in _TABLES:
        return "\n".join((f"[{_TABLES[item.kind]}]", f"name = {name}", *keys))
    if item.kind in _FLAT:
        own = keys if item.kind == "strategy" else ()
        return "\n".join(("[federation]", f"{item.kind} = {name}", *own))
    if item.kind == "restoration":
        return f"[attacker]\nrestorations = [{name}]"
    return "\n".join(
        (*_DEC, *_part(item.kind, f"{{{', '.join((f'name = {name}', *keys))}}}", details))
    )


def _part(kind: str, table: str, details: Details) -> Iterator[str]:
    """Yield the keys of an attack by DEC with a codec, a carrier or a code."""
    part: Any = details.component
    if kind == "codec":
        yield f"codec = {table}"
        if not part.lossless:
            yield _OUTSIDE
    elif kind == "carrier" and "bytes" not in part.carries:
        yield from (f"carrier = {table}", 'contents = "latents"', _OUTSIDE)
    else:
        yield from ('codec = "png"', f"{'coding' if kind == 'code' else kind} = {table}")


def _keys(settings: type[Settings] | None) -> Iterator[str]:
    """Yield keys and values: those of the docstring's example, or the first of the class's own."""
    if settings is None:
        return
    for kind in settings.__mro__:
        lines = section(kind.__doc__ or "", "Example:") if "__doc__" in vars(kind) else []
        if lines:
            yield from lines
            return
    plain = {
        name: field.get_default()
        for name, field in settings.model_fields.items()
        if isinstance(field.get_default(), bool | int | float | str)
    }
    inherited = {n for base in settings.__bases__ for n in getattr(base, "model_fields", ())}
    own = [name for name in plain if name not in inherited] or list(plain)
    for name in own[:_SHOWN]:
        yield f"{name} = {written(plain[name])}"
