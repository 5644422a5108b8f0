"""What there is to choose from: every registered component, tables of keys, scenarios and grids.

It is found at a glance (:mod:`fl_sim.glance`), so nothing that takes seconds is imported.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from experiments.run.shipped import Kind as FileKind
from experiments.run.shipped import shipped
from fl_sim.errors import FlSimError, did_you_mean, shown
from fl_sim.glance import Glance
from fl_sim.metrics.vocabulary import FORMS, in_words
from fl_sim.registry import Registry
from fl_sim.settings import Settings

T = TypeVar("T")
Get = Callable[[str, str], Any]
"""``get(module, name)``: what a module calls a name, glanced at or imported."""


def _own(get: Get, name: str, component: Any) -> type[Settings] | None:
    found: type[Settings] | None = getattr(component, "Settings", None)
    return found or getattr(component, "settings", None)


def _of_model(get: Get, name: str, component: Any) -> type[Settings]:
    found: type[Settings] = get("fl_sim.case", "model_settings")(name)
    return found


def _none(get: Get, name: str, component: Any) -> None:
    return None


def _texts(get: Get, component: Any) -> tuple[str, ...]:
    return _module_text(get, component), _own_text(component)


def _of_metric(get: Get, component: Any) -> tuple[str, ...]:
    return (in_words(component),)


def _common(module: str, name: str) -> Callable[[Get, str, Any], type[Settings]]:
    def found(get: Get, component_name: str, component: Any) -> type[Settings]:
        settings: type[Settings] = get(module, name)
        return settings

    return found


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Args:
        name: as it is said, for example ``"defence"``.
        title: above the list of its components.
        module, registry: where their registry is.
        also: further words for it.
        settings: ``settings(get, name, component)`` gives the keys of a component, if it has any.
        further: what can be named without being registered: how, and a line about it.
        about: ``about(get, component)`` gives texts on a component.
    """

    name: str
    title: str
    module: str
    registry: str
    also: tuple[str, ...] = ()
    settings: Callable[[Get, str, Any], type[Settings] | None] = _own
    further: tuple[tuple[str, str], ...] = ()
    about: Callable[[Get, Any], tuple[str, ...]] = _texts

    @property
    def words(self) -> tuple[str, ...]:
        """What it is called on the command line."""
        return (self.name, self.title.lower(), *self.also)


KINDS = (
    Kind(
        "dataset",
        "Datasets",
        "fl_sim.data.base",
        "DATASETS",
        further=(("<file>.npz", "any file in MedMNIST's 2-D format, by its path"),),
    ),
    Kind(
        "model",
        "Models",
        "fl_sim.models.base",
        "MODELS",
        settings=_of_model,
        further=(
            ("<torchvision's name>", "any classifier of torchvision, for example resnet50"),
            ("timm/<name>", "any network of timm, where that is installed: timm/resnet10t"),
            ("<package.module:function>", "your own function, which returns the network"),
        ),
    ),
    Kind("attack", "Attacks", "fl_sim.attacks.base", "ATTACKS"),
    Kind("codec", "Codecs", "fl_sim.codec", "CODECS"),
    Kind("carrier", "Carriers", "fl_sim.carriers.base", "CARRIERS"),
    Kind("code", "Error-correcting codes", "fl_sim.coding.base", "CODES", ("codes", "coding")),
    Kind("defence", "Defences", "fl_sim.defenses.base", "DEFENSES", ("defense", "defenses")),
    Kind("restoration", "Restorations", "fl_sim.restorations.base", "RESTORATIONS"),
    Kind(
        "membership attack",
        "Membership attacks",
        "fl_sim.membership_inference.base",
        "METHODS",
        ("inference",),
        settings=_none,  # its keys are those of the table [membership]
    ),
    Kind("strategy", "Strategies", "strategies.base", "STRATEGIES"),
    Kind(
        "partition",
        "Partitions",
        "fl_sim.data.partitions",
        "SCHEMES",
        settings=_common("fl_sim.data.partitions", "PartitionSettings"),
    ),
    Kind(
        "engine",
        "Engines",
        "fl_sim.engine.base",
        "ENGINES",
        settings=_common("fl_sim.engine.base", "EngineSettings"),
    ),
    Kind(
        "metric",
        "Metrics",
        "fl_sim.metrics.vocabulary",
        "METRICS",
        settings=_none,
        further=tuple((f"<metric>{ending}", form.about) for ending, form in FORMS.items()),
        about=_of_metric,
    ),
)
"""Every kind of component, in the order of a scenario's way."""

TABLES = {
    "training": ("fl_sim.training", "TrainingSettings"),
    "data": ("fl_sim.data.splits", "HeldOutSettings"),
    "measure": ("experiments.run.scenario", "MeasureSettings"),
    "attacker": ("fl_sim.rehearsal", "AttackerSettings"),
    "membership": ("fl_sim.membership_inference.base", "MembershipSettings"),
    "inversion": ("fl_sim.inversion.search", "InversionSettings"),
    "federation": ("experiments.run.scenario", "FederationSettings"),
}
"""The tables of a scenario that are no component: where their settings are."""

TABLE = "table"
FILES: dict[str, tuple[str, FileKind]] = {
    "scenario": ("Scenarios", "scenario"),
    "grid": ("Grids", "grid"),
    "tuning": ("Tuning files", "tuning"),
}
"""Kinds of files that come along, and their titles."""


@dataclass(frozen=True)
class Item:
    """Something that a user can choose.

    Args:
        kind: its kind's name; ``"table"``, or one of :data:`FILES` where it is no component.
        name: its own.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Details:
    """What is known of a component or a table.

    Args:
        summary: one line.
        about: docstrings: of the file that defines it, and its own.
        settings: its keys, if it has any.
        component: what is registered; ``None`` for a table.
    """

    summary: str
    about: tuple[str, ...]
    settings: type[Settings] | None
    component: Any


class Catalogue:
    """Everything that can be chosen, by kind and name."""

    def __init__(self) -> None:
        self._glance = Glance()

    def names(self, kind: str) -> dict[str, str]:
        """Return the names of a kind and the line about each."""
        if kind in FILES:
            return {name: first_comment(file) for name, file in shipped(FILES[kind][1]).items()}
        if kind == TABLE:
            return {name: self.details(Item(TABLE, name)).summary.rstrip(".") for name in TABLES}
        found: dict[str, str] = self._ask(component_kind(kind), lambda get, all: all.summaries())
        return found

    def lists(self, kinds: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
        """Return names and lines by kind: of some kinds, or of all but the tables."""
        every = (*(kind.name for kind in KINDS), *FILES)
        further = {kind.name: dict(kind.further) for kind in KINDS}
        return {kind: self.names(kind) | further.get(kind, {}) for kind in kinds or every}

    def find(self, name: str, kind: str | None = None) -> Item:
        """Return what is called ``name``.

        Raises:
            FlSimError: if nothing is, with the nearest name, or several kinds have one.
        """
        searched = (kind,) if kind else (*(k.name for k in KINDS), TABLE, *FILES)
        known = {each: TABLES if each == TABLE else self.names(each) for each in searched}
        items = [Item(each, name) for each in searched if name in known[each]]
        if not items and "model" in searched and name in self._of_torchvision():
            return Item("model", name)
        if len(items) > 1:
            ways = " or ".join(f"'fl-sim show {item.kind} {name}'" for item in items)
            raise FlSimError(f"There are several called {shown(name)}: say {ways}.")
        if not items:
            every = [one for names in known.values() for one in names]
            hint = did_you_mean(name, every)
            hint = hint if kind or "Did you mean" in hint else " 'fl-sim list' names all."
            raise FlSimError(f"There is no {kind or 'component'} called {shown(name)}.{hint}")
        return items[0]

    def details(self, item: Item) -> Details:
        """Return what is known of a component or a table."""
        if item.kind == TABLE:
            settings = self._try(lambda get: get(*TABLES[item.name]))
            text = settings.__doc__ or ""
            return Details(text.partition("\n")[0], (), settings, None)
        kind = component_kind(item.kind)

        def ask(get: Get, registry: Registry[Any]) -> Details:
            component = registry.get(item.name)
            settings = kind.settings(get, item.name, component)
            about = kind.about(get, component)
            summary = registry.summaries().get(item.name, "a classifier of torchvision's")
            return Details(summary, about, settings, component)

        return self._ask(kind, ask)

    def _of_torchvision(self) -> tuple[str, ...]:
        names: tuple[str, ...] = self._try(
            lambda get: get("fl_sim.models.from_torchvision", "names")()
        )
        return names

    def _ask(self, kind: Kind, question: Callable[[Get, Any], T]) -> T:
        return self._try(lambda get: question(get, get(kind.module, kind.registry)))

    def _try(self, question: Callable[[Get], T]) -> T:
        """Ask at a glance, and where that does not tell, with the real import."""
        try:
            return question(self._glance.get)
        except Exception:
            return question(lambda module, name: getattr(importlib.import_module(module), name))


def component_kind(word: str) -> Kind:
    """Return a kind of component by any of its words.

    Raises:
        FlSimError: if there is none.
    """
    name = kind_called(word)
    return next(kind for kind in KINDS if kind.name == name)


def kind_called(word: str) -> str:
    """Return a kind's name for any word for it, in singular or plural.

    Raises:
        FlSimError: if no kind is called so; with the nearest word.
    """
    words = {one: kind.name for kind in KINDS for one in kind.words}
    words |= {one: kind for kind in FILES for one in (kind, FILES[kind][0].lower())}
    words |= {TABLE: TABLE, f"{TABLE}s": TABLE}
    if word.lower() not in words:
        raise FlSimError(f"There is no kind called {shown(word)}.{did_you_mean(word, words)}")
    return words[word.lower()]


def is_kind(word: str) -> bool:
    """Whether a word is one for a kind."""
    try:
        kind_called(word)
    except FlSimError:
        return False
    return True


def title_of(kind: str) -> str:
    """Return what stands above the list of a kind."""
    if kind in FILES:
        return FILES[kind][0]
    return "Tables of a scenario" if kind == TABLE else component_kind(kind).title


def first_comment(file: Path) -> str:
    """Return what the comment in a file's first line says."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _module_text(get: Get, component: Any) -> str:
    maker = component
    for name in ("build", "load"):  # of what only holds the functions that make it
        maker = getattr(component, name, maker) if not hasattr(component, "__qualname__") else maker
    module: ModuleType | str = get(*maker.__module__.rpartition(".")[::2])
    return getattr(module, "__doc__", None) or ""


def _own_text(component: Any) -> str:
    own = getattr(component, "__doc__", None) if hasattr(component, "__qualname__") else None
    return own or ""
