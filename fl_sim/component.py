"""A component as people write it: a registered name, or a table of its name and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from fl_sim.errors import FlSimError, shown
from fl_sim.plain import check_plain
from fl_sim.registry import Registry
from fl_sim.settings import Settings, parse

S = TypeVar("S", bound=Settings)
T = TypeVar("T")


class Component(Settings):
    """A registered component with its settings: as JSON holds them, and once parsed, typed."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    _parsed: Settings | None = None

    def __eq__(self, other: object) -> bool:
        """Whether name and settings are the same, parsed or not."""
        if not isinstance(other, Component):
            return NotImplemented
        return (self.name, self.settings) == (other.name, other.settings)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out what was parsed: its class may have been made here, as that of a model's is."""
        return {**super().__getstate__(), "__pydantic_private__": {"_parsed": None}}

    def differing(self) -> dict[str, Any]:
        """Return the name, and the settings that are not defaults where it has been checked."""
        settings = self.settings if self._parsed is None else self._parsed.differing()
        return {"name": self.name, **({"settings": settings} if settings else {})}

    @classmethod
    def of(cls, value: Any, where: str) -> "Component":
        """Read a component as people write it: its name, or a table of its name and settings.

        Args:
            value: a string, a path, a mapping with the key ``name``, or a choice.
            where: how its table is called in messages, for example ``"[attack]"``.

        Raises:
            FlSimError: if it is nothing of these.
        """
        if isinstance(value, Component):
            return value
        if isinstance(value, str | Path):
            return cls(name=str(value))
        if not isinstance(value, Mapping):
            raise FlSimError(f"{where} should be a name or a table, not {shown(value)}.")
        check_plain(value, where)
        if set(value) == {"name", "settings"} and isinstance(value["settings"], Mapping):
            value = {**value["settings"], "name": value["name"]}
        settings = dict(value)
        if "name" not in settings:
            raise FlSimError(f"{where} lacks the key 'name'.")
        name = settings.pop("name")
        if not isinstance(name, str):
            raise FlSimError(f"{where}: 'name' is {shown(name)}, but it should be a string.")
        return cls(name=name, settings=settings)

    def checked(self, registry: Registry[type[T]], where: str) -> "Component":
        """Return the choice with every default of its component filled in.

        Raises:
            FlSimError: if there is no such component, or a key is wrong.
        """
        kind: Any = registry.get(self.name)
        return self.of_kind(kind.Settings, where)

    def of_kind(self, kind: type[Settings], where: str) -> "Component":
        """Return the component with every default of its settings filled in.

        Args:
            kind: class of its settings.
            where: how its table is called in messages.

        Raises:
            FlSimError: if a key is wrong.
        """
        parsed = self.typed(kind, where)
        filled = Component(name=self.name, settings=parsed.plain())
        filled._parsed = parsed
        return filled

    def typed(self, kind: type[S], where: str) -> S:
        """Return the settings as their class, parsed only where they have not been.

        Args:
            kind: class of the settings.
            where: how its table is called in messages.

        Raises:
            FlSimError: if a key is wrong.
        """
        if type(self._parsed) is kind:
            return self._parsed
        return parse(kind, self.settings, where)

    def told(self, **settings: Any) -> "Component":
        """Return the component with other settings, checked where its own have been.

        Raises:
            FlSimError: if one of those is wrong.
        """
        changed = Component(name=self.name, settings={**self.settings, **settings})
        return changed if self._parsed is None else changed.of_kind(type(self._parsed), self.name)

    def build(self, registry: Registry[type[T]], where: str) -> T:
        """Build the component from a registry of classes that have ``Settings``.

        Args:
            registry: attacks, defences or the like.
            where: how its table is called in messages, for example ``"[attack]"``.

        Raises:
            FlSimError: if there is no such component, or a key is wrong.
        """
        kind: Any = registry.get(self.name)
        component: T = kind(self.typed(kind.Settings, where))
        return component
