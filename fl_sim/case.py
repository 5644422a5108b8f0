"""A case: the data and the network that a study is about, apart from who attacks or defends it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import Field, create_model

from fl_sim.data import load_dataset
from fl_sim.data.base import DataFile, Split, Task
from fl_sim.data.cache import reporting
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.errors import FlSimError
from fl_sim.models import Stem, check
from fl_sim.models.base import MODELS, ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.registry import Registry
from fl_sim.settings import Settings, parse

T = TypeVar("T")


class Choice(Settings):
    """A registered component with its settings, as a plain dictionary."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, where: str) -> "Choice":
        """Read a component as people write it: its name, or a table of its name and settings.

        Args:
            value: a string, a path, a mapping with the key ``name``, or a choice.
            where: how its table is called in messages, for example ``"[attack]"``.

        Raises:
            FlSimError: if it is nothing of these.
        """
        if isinstance(value, Choice):
            return value
        if isinstance(value, str | Path):
            return cls(name=str(value))
        if not isinstance(value, Mapping):
            raise FlSimError(f"{where} should be a name or a table, not {value!r}.")
        if set(value) == {"name", "settings"} and isinstance(value["settings"], Mapping):
            return cls(name=value["name"], settings=dict(value["settings"]))
        settings = dict(value)
        if "name" not in settings:
            raise FlSimError(f"{where} lacks the key 'name'.")
        name = settings.pop("name")
        if not isinstance(name, str):
            raise FlSimError(f"{where}: 'name' is {name!r}, but it should be a string.")
        return cls(name=name, settings=settings)

    def checked(self, registry: Registry[type[T]], where: str) -> "Choice":
        """Return the choice with every default of its component filled in.

        Raises:
            FlSimError: if there is no such component, or a key is wrong.
        """
        kind: Any = registry.get(self.name)
        settings = parse(kind.Settings, self.settings, where).model_dump(mode="json")
        return Choice(name=self.name, settings=settings)

    def build(self, registry: Registry[type[T]], where: str) -> T:
        """Build the component from a registry of classes that have ``Settings``.

        Args:
            registry: attacks, defences or the like.
            where: how its table is called in messages, for example ``"[attack]"``.

        Raises:
            FlSimError: if there is no such component, or a key is wrong.
        """
        kind: Any = registry.get(self.name)
        component: T = kind(parse(kind.Settings, self.settings, where))
        return component


class ModelSettings(Settings):
    """Keys of every model, beside those of its own.

    Args:
        stem: ``"default"`` is torchvision's own; ``"small"`` a 3x3 convolution without pooling.
    """

    stem: Stem = "default"


def model_settings(name: str) -> type[ModelSettings]:
    """Return the keys of ``[model]`` for a registered model: those of every model, and its own.

    Raises:
        FlSimError: if there is no such model.
    """
    own = MODELS.get(name).settings
    bases: tuple[Any, ...] = (ModelSettings, own)
    return cast(type[ModelSettings], create_model(own.__name__, __base__=bases))


class CaseSettings(Settings):
    """What a case is made of; the same settings give the same case in every process.

    Args:
        dataset: registered dataset, or the path of an ``.npz`` file, and its settings.
        model: registered model and its settings.
        data: sizes of the held-out, public and other sets.
        seed: which images are held out and public, and the initial weights.
    """

    dataset: Choice
    model: Choice
    data: HeldOutSettings = HeldOutSettings()
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A case with its data loaded.

    Args:
        name: the dataset's name in results.
        spec: the network.
        task: what it is for.
        train: images of the hospitals together.
        held_out: the data owner's images for a defence.
        public: images an attacker may use to restore; disjoint from ``train``.
        test: images for utility.
        files: what was read.
    """

    name: str
    spec: ModelSpec
    task: Task
    train: Split
    held_out: Split
    public: Split
    test: Split
    files: tuple[DataFile, ...]


def open_case(settings: CaseSettings, data_root: Path | None, progress: Progress = SILENT) -> Case:
    """Load a case; a process that asks twice gets the same object.

    Args:
        settings: what it is made of.
        data_root: folder of data files.
        progress: told how far a long preparation has come.

    Raises:
        FlSimError: if a file is missing or broken, or a size is impossible.
    """
    with reporting(progress):
        return _open(settings.model_dump_json(), data_root)


@lru_cache(maxsize=2)
def _open(settings_json: str, data_root: Path | None) -> Case:
    settings = CaseSettings.model_validate_json(settings_json)
    dataset = load_dataset(settings.dataset.name, settings.dataset.settings, data_root)
    model = parse(model_settings(settings.model.name), settings.model.settings, "[model]")
    spec = ModelSpec(
        name=settings.model.name,
        channels=dataset.channels,
        size=dataset.size,
        classes=dataset.task.outputs,
        stem=model.stem,
        task=dataset.task.family,
        settings=model.model_dump(mode="json", exclude=set(ModelSettings.model_fields)),
    )
    check(spec)
    parts = divide(dataset, settings.data, settings.seed)
    return Case(
        name=dataset.name,
        spec=spec,
        task=dataset.task,
        train=parts.train,
        held_out=parts.held_out,
        public=parts.public,
        test=parts.test,
        files=dataset.files,
    )
