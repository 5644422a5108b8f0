"""Registries: a new attack, defence, dataset, model or restoration is one new file.

A registry belongs to a package. The file that defines a component registers it::

    @ATTACKS.register("transpose", "images memorised by running the network backwards")
    class Transpose(Attack): ...

and lies in that package; nothing else has to be edited. Asking for a name imports the file of that
name, and only where there is none the whole package, so a process pays for what it uses.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fl_sim.errors import FlSimError, printable, shown, unknown_name

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

        The name may come from anybody's file: only a module that lies in the package is imported.

        Raises:
            FlSimError: if there is none; the message gives the nearest valid name.
        """
        if not isinstance(name, str):
            raise unknown_name(self.kind, name, self.names())
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
        for module in self._modules():
            importlib.import_module(f"{self.package}.{module}")
        return [self._entries[name] for name in sorted(self._entries)]

    def _import_module_of(self, name: str) -> None:
        if name in self._modules():
            importlib.import_module(f"{self.package}.{name}")
        else:
            self.entries()

    def _modules(self) -> list[str]:
        """Return the names of the package's modules, as its folder has them."""
        package = importlib.import_module(self.package)
        names = [module.name for module in pkgutil.iter_modules(package.__path__)]
        return [name for name in names if name.isidentifier() and not name.startswith("__")]


def import_plugins(modules: Any) -> None:
    """Import modules that register components from outside this project.

    Args:
        modules: a list of dotted names.

    Raises:
        FlSimError: if it is no such list, or a module is missing, raises or exits.
    """
    if not isinstance(modules, list | tuple):
        raise FlSimError(
            f"'plugins' is {shown(modules)}, but it should be a list of modules' names."
        )
    for module in modules:
        parts = module.split(".") if isinstance(module, str) else [""]
        if not all(part.isidentifier() and not part.startswith("__") for part in parts):
            raise FlSimError(
                f"'plugins' names {shown(module)}, which is no module's name; a plugin is named as "
                f"in an import, for example plugins = ['my_attacks']."
            )
        try:
            importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a stranger's module does, sys.exit too
            raise FlSimError(_why_not(module, error)) from error


def _why_not(module: str, error: BaseException) -> str:
    """Say why a plugin could not be imported."""
    said = printable(str(error)).strip()
    if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "?"):
        return f"The plugin '{module}' cannot be imported: {said}; put its folder on PYTHONPATH."
    if isinstance(error, SystemExit):
        return f"The plugin '{module}' cannot be imported: it ends the program ({said or 'exit'})."
    if isinstance(error, FlSimError):
        return f"The plugin '{module}' cannot be imported: {said}"
    kind = type(error).__name__
    return f"The plugin '{module}' cannot be imported: {kind}{f': {said}' if said else ''}."


def _origin(component: Any) -> tuple[str, str]:
    return (
        getattr(component, "__module__", ""),
        getattr(component, "__qualname__", repr(component)),
    )
