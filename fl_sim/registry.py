"""Registries: a new attack, defence, dataset, model or restoration is one new file.

A registry belongs to a package. The file that defines a component registers it::

    @ATTACKS.register("transpose", "images memorised by running the network backwards")
    class Transpose(Attack): ...

and lies in that package; nothing else has to be edited. Asking for a name imports the file of that
name, and only where there is none the whole package, so a process pays for what it uses.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fl_sim.errors import FlSimError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered component: its name, one line about it, and the thing itself."""

    name: str
    summary: str
    component: T


class Registry(Generic[T]):
    """Components by name.

    Args:
        kind: what an entry is called in messages, for example ``"attack"``.
        package: dotted name of the package whose modules register the entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, summary: str) -> Callable[[T], T]:
        """Return a decorator that registers a component under ``name``.

        Raises:
            FlSimError: if another component has that name.
        """

        def add(component: T) -> T:
            old = self._entries.get(name)
            if old is not None and _origin(old.component) != _origin(component):
                raise FlSimError(f"The {self.kind} '{name}' is registered twice.")
            self._entries[name] = Entry(name, summary, component)
            return component

        return add

    def get(self, name: str) -> T:
        """Return the component called ``name``.

        Raises:
            FlSimError: if there is none; the message gives the nearest valid name.
        """
        if name not in self._entries:
            self._import_module_of(name)
        if name not in self._entries:
            raise unknown_name(self.kind, name, self.names())
        return self._entries[name].component

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return [entry.name for entry in self.entries()]

    def entries(self) -> list[Entry[T]]:
        """Return all entries, sorted by name; imports the whole package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, self.package + "."):
            importlib.import_module(module.name)
        return [self._entries[name] for name in sorted(self._entries)]

    def _import_module_of(self, name: str) -> None:
        module = f"{self.package}.{name}"
        if name.isidentifier() and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
        else:
            self.entries()


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register components from outside this project.

    Raises:
        FlSimError: if one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise FlSimError(f"The plugin '{module}' cannot be imported: {error}.") from error


def _origin(component: Any) -> tuple[str, str]:
    return (
        getattr(component, "__module__", ""),
        getattr(component, "__qualname__", repr(component)),
    )
