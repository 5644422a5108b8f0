"""A case: the data and the network that a study is about, apart from who attacks or defends it."""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

from pydantic import create_model

from fl_sim.component import Component
from fl_sim.data import load_dataset, task_family
from fl_sim.data.base import DataFile, Split, Task
from fl_sim.data.cache import reporting
from fl_sim.data.duplicates import NearDuplicates, look_at
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.models import Stem, build, check, check_task, state_model
from fl_sim.models.base import MODELS, ModelSpec
from fl_sim.models.lent import require_answers
from fl_sim.models.pixels import normalization
from fl_sim.progress import SILENT, Progress
from fl_sim.settings import Seed, Settings
from fl_sim.starting import Starting, Weights, read_weights, starting, starting_file


class ModelSettings(Settings):
    """Keys of every model, beside those of its own.

    Args:
        stem: ``"default"`` is torchvision's own; ``"small"`` a 3x3 convolution without pooling.
        weights: a checkpoint of any format that training starts from; its last layer may have
            another number of outputs, and begins anew then. Fresh weights where not given.
        normalize: how the network takes pixels: ``"symmetric"`` ([-1, 1]), ``"none"`` ([0, 1]),
            ``"imagenet"`` (what torchvision's pretrained weights want), or a mean and a deviation
            as text, ``"0.5,0.25"``.
    """

    stem: Stem = "default"
    weights: str | None = None
    normalize: str = "symmetric"


def model_settings(name: str) -> type[ModelSettings]:
    """Return the keys of ``[model]`` for a model: those of every model, and its own.

    A scenario is its user's word, so a function that it names is imported here.

    Raises:
        FlSimError: if there is no such model.
    """
    return _with_own(MODELS.get(state_model(name)).settings)


@cache
def _with_own(own: type[Settings]) -> type[ModelSettings]:
    """Return one class for the keys of every model and a model's own, the same at every call."""
    bases: tuple[Any, ...] = (ModelSettings, own)
    return cast(type[ModelSettings], create_model(own.__name__, __base__=bases))


class CaseSettings(Settings):
    """What a case is made of; the same settings give the same case in every process.

    Args:
        dataset: registered dataset, or the path of an ``.npz`` file, and its settings.
        model: its name (registered, torchvision's, or ``package.module:function``) and settings.
        data: sizes of the held-out, public and other sets.
        seed: which images are held out and public, and the initial weights.
    """

    dataset: Component
    model: Component
    data: HeldOutSettings = HeldOutSettings()
    seed: Seed = 0


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
        test: images for utility: the test set, or a part of what is held out, see
            :class:`fl_sim.data.splits.Divided`.
        files: what was read.
        description: one line on the dataset.
        weights: the checkpoint that training starts from; ``None`` for fresh weights.
        dropped: near-duplicates that were left out; ``None`` where none were to be.
    """

    name: str
    spec: ModelSpec
    task: Task
    train: Split
    held_out: Split
    public: Split
    test: Split
    files: tuple[DataFile, ...]
    description: str = ""
    weights: Path | None = None
    dropped: NearDuplicates | None = None

    @cached_property
    def near_duplicates(self) -> NearDuplicates | None:
        """Near-duplicates between the uses, or those that were left out; looked for once.

        ``None`` among too many images; see :data:`fl_sim.data.duplicates.MOST_LOOKED_AT`.
        """
        if self.dropped is not None:
            return self.dropped
        uses = {"train": self.train, "held-out": self.held_out, "public": self.public}
        return look_at({**uses, "test": self.test})

    def initial(self, seed: int) -> Starting:
        """Return the network that training starts from, and what is said of its weights.

        Raises:
            FlSimError: if the checkpoint it is to start from is not of this network.
        """
        return starting(self.spec, self.own_weights, seed)

    @cached_property
    def own_weights(self) -> Weights | None:
        """What the checkpoint gives the network to start from, read once; ``None`` without one.

        Raises:
            FlSimError: if it cannot be read or is not of this network.
        """
        return None if self.weights is None else read_weights(self.weights, self.spec)


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
    model = settings.model.typed(model_settings(settings.model.name), "[model]")
    # What cannot fit is said before gigabytes are prepared.
    check_task(settings.model.name, task_family(settings.dataset.name, settings.dataset.settings))
    dataset = load_dataset(settings.dataset.name, settings.dataset.settings, data_root)
    mean, std = normalization(model.normalize, dataset.channels)
    weights = None if model.weights is None else Path(model.weights).expanduser()
    spec = ModelSpec(
        name=settings.model.name,
        channels=dataset.channels,
        size=dataset.size,
        classes=dataset.task.outputs,
        stem=model.stem,
        task=dataset.task.family,
        settings=model.model_dump(mode="json", exclude=set(ModelSettings.model_fields)),
        mean=mean,
        std=std,
    )
    check(spec)
    if MODELS.lent(spec.name) is not None:
        require_answers(spec, build(spec))
    parts = divide(dataset, settings.data, settings.seed)
    return Case(
        name=dataset.name,
        spec=spec,
        task=dataset.task,
        train=parts.train,
        held_out=parts.held_out,
        public=parts.public,
        test=parts.test,
        files=dataset.files if weights is None else (*dataset.files, starting_file(weights)),
        description=dataset.description,
        weights=weights,
        dropped=parts.dropped,
    )
