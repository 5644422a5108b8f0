"""Registries: a new attack, defence, dataset, model or restoration is one new file.

A registry belongs to a package. The file that defines a component registers it::

    @ATTACKS.register("transpose", "images memorised by running the network backwards")
    class Transpose(Attack): ...

and lies in that package; nothing else has to be edited. Names and the lines about them are read
from the files' text, and asking for a name imports the file that registers it, so a process pays
for what it uses.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fl_sim.errors import FlSimError, printable, shown, unknown_name
from fl_sim.registrations import Declaration, read_declarations, source_files

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
        package: dotted name of the package whose modules register the entries, or of the one
            module that registers them all.
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
            self._find(name)
        if name not in self._entries:
            raise unknown_name(self.kind, name, self.names())
        return self._entries[name].component

    def __contains__(self, name: object) -> bool:
        """Whether there is a component called ``name``; one that is registered is found at once."""
        return name in self._entries or name in self.summaries()

    def names(self) -> list[str]:
        """Return all names, sorted; see :meth:`summaries`."""
        return list(self.summaries())

    def summaries(self) -> dict[str, str]:
        """Return all names, sorted, and the line about each, read from the package's files.

        A file whose text does not say them is imported.
        """
        found: dict[str, str] = {}
        for declared in self._declared():
            if declared.name is None:
                self._load(declared)
            else:
                found[declared.name] = declared.summary
        found |= {name: entry.summary for name, entry in self._entries.items()}
        return dict(sorted(found.items()))

    def entries(self) -> list[Entry[T]]:
        """Return all entries, sorted by name; imports every file that registers any."""
        for declared in self._declared():
            self._load(declared)
        return [self._entries[name] for name in sorted(self._entries)]

    def _find(self, name: str) -> None:
        """Import the file of the package that registers ``name``, if there is one."""
        unnamed = []
        for declared in self._declared(name):
            if declared.name == name:
                return self._load(declared)
            if declared.name is None:
                unnamed.append(declared)
        for declared in unnamed:
            self._load(declared)
            if name in self._entries:
                return

    def _declared(self, first: str = "") -> Iterator[Declaration]:
        """Yield what the package's files register here, beginning with the module ``first``."""
        files = source_files(self.package)
        for module in sorted(files, key=lambda module: module != f"{self.package}.{first}"):
            for declared in read_declarations(module, files[module]):
                if self._is_called(*declared.registry):
                    yield declared

    def _is_called(self, module: str, name: str) -> bool:
        """Whether a name of a module means this registry, as far as can be told."""
        known = sys.modules.get(module)
        return known is None or getattr(known, name, None) is self

    def _load(self, declared: Declaration) -> None:
        importlib.import_module(declared.module)


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
