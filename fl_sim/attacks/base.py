"""What an attack is.

An attack acts in two places that share nothing but files. Inside the hospital it plans (which
images, which key) and trains; outside, the receiver extracts with the artifact and the key alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.artifact import Artifact, Key
from fl_sim.carriers.base import Payload, State
from fl_sim.component import Component
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Reading
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.registry import Registry
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, TrainReport


class AttackSettings(Settings):
    """Keys every attack understands.

    Args:
        images: how many training images the attacker wants to take out; some attacks also take
            ``"fit"``, as many as they can.
    """

    images: int | Literal["fit"] = 64

    def identity(self) -> dict[str, Any]:
        """Return what results depend on: the keys that are not defaults."""
        return self.differing()


AttackSettingsT = TypeVar("AttackSettingsT", bound=AttackSettings)


@dataclass(frozen=True)
class Collusion:
    """A hospital's part among several that hide their images in one model, for one receiver.

    Args:
        number: of its part, from 0.
        parts: how many there are.
        secret: where the randomness that they share is derived from.
    """

    number: int
    parts: int
    secret: Stream


@dataclass(frozen=True)
class Inside:
    """What the attacker's code finds inside the hospital before training.

    Args:
        data: the attacked hospital's training images.
        task: their task.
        spec: the network that will be trained.
        stream: where randomness is derived from; the same in every round.
        data_root: folder of data files, for what the attacker prepared outside (a codec's dataset).
        progress: where to report.
        collusion: the hospital's part among several that must not overwrite each other's payloads;
            ``None`` for an attacker on his own.
        public: images of the same kind that the attacker has outside, too, none of them among the
            hospital's; ``None`` where he has none.
    """

    data: Split
    task: Task
    spec: ModelSpec
    stream: Stream
    data_root: Path | None = None
    progress: Progress = SILENT
    collusion: Collusion | None = None
    public: Split | None = None


@dataclass(frozen=True)
class Plan:
    """What the attacker decides before training.

    Args:
        indices: which of the hospital's images are stolen, ``[n]``, in the order in which they
            are to be recovered.
        targets: those images, float32 ``[n, channels, height, width]`` in [0, 1].
        key: what the receiver needs besides the artifact, carried outside by other means. Not all
            of it can be known beforehand: with some attacks it holds the label of each stolen image
            (Transpose's codes, the memory backdoor), with others the payload's length (DEC).
        payload: what a carrier will be given to carry, where that is known before training.
        content: the payload before error correction, where a receiver of an undisturbed model may
            fail to read it; elsewhere what he reads stands for it.
    """

    indices: NDArray[np.int64]
    targets: torch.Tensor
    key: Key
    payload: Payload | None = None
    content: Payload | None = None


@dataclass(frozen=True)
class Averaging:
    """What a hospital knows of the average that its upload goes into.

    Args:
        broadcast: the state that every hospital started from.
        share: the weight in the average of what the attackers send alike: this hospital's images
            over those of all hospitals, or those of all that send the same payload.
    """

    broadcast: State
    share: float


@dataclass(frozen=True)
class Embedding:
    """A state dictionary with the payload in it.

    Args:
        state: what is going to leave.
        values: what there is to say of it, by metric: capacity, payload bytes, images written.
    """

    state: State
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Extraction:
    """What a receiver gets out of an artifact.

    Args:
        images: float32 ``[n, channels, height, width]``, in the plan's order. Values may be outside
            [0, 1] or not finite (an image that is lost); measuring deals with that.
        reading: what came out of the carrier, for attacks that use one.
    """

    images: torch.Tensor
    reading: Reading | None = None


def draw(inside: Inside, count: int) -> NDArray[np.int64]:
    """Choose ``count`` of the hospital's images at random, in random order.

    Raises:
        FlSimError: if it has fewer.
    """
    available = len(inside.data)
    if count > available:
        raise FlSimError(
            f"[attack] images is {count}, but the attacked hospital has {available} training "
            f"images; lower it or give the hospital more."
        )
    generator = inside.stream.numpy("stolen images")
    drawn: NDArray[np.int64] = generator.choice(available, size=count, replace=False)
    return drawn


def steal(inside: Inside, count: int) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]:
    """Choose images at random, and return their sorted indices, the images and their labels.

    Raises:
        FlSimError: if the hospital has fewer.
    """
    indices = np.sort(draw(inside, count))
    return indices, *inside.data.batch(indices)


def require_classifier(inside: Inside, attack: str, how: str) -> None:
    """Refuse a segmentation, for attacks that use an image's class scores.

    Args:
        inside: what the attack finds.
        attack: its registered name.
        how: what it does with the scores, for the message.

    Raises:
        FlSimError: if the task is a segmentation.
    """
    if inside.task.is_segmentation:
        raise FlSimError(
            f"The attack '{attack}' {how} class scores; a segmentation network has none. Take "
            f'[attack] name = "dec".'
        )


class Attack(ABC, Generic[AttackSettingsT]):
    """An attack on a training run. Subclass, set ``Settings``, and register with ``ATTACKS``."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    splits: ClassVar[bool] = False
    """Whether several hospitals can share out a model's places; see :class:`Collusion`."""
    key_tells: ClassVar[frozenset[str]] = frozenset()
    """Numbers in the key's settings that depend on the stolen images, beside their labels."""

    def __init__(self, settings: AttackSettingsT) -> None:
        self.settings = settings

    @property
    def key_has_labels(self) -> bool:
        """Whether the key tells the label of each stolen image.

        Whoever holds such a key guesses better than blindly which original is which.
        """
        return False

    @property
    def trains_honestly(self) -> bool:
        """Whether :meth:`train` is ordinary training, bit for bit, and all is hidden afterwards.

        Such attacks may start from one and the same trained network.
        """
        return False

    @property
    def prepared_outside(self) -> str | None:
        """What :meth:`prepare` makes, the same text for the same thing; ``None`` for nothing."""
        return None

    @property
    def outside_data(self) -> tuple[Component, ...]:
        """Datasets that :meth:`prepare` trains on; they must not hold the attacked images."""
        return ()

    def prepare(self, data_root: Path | None, progress: Progress = SILENT) -> None:
        """Make what the attacker brings from outside, such as a trained codec, and keep it cached.

        :meth:`plan` does the same where it has not been done.

        Args:
            data_root: folder of data files.
            progress: where to report.
        """

    @abstractmethod
    def plan(self, inside: Inside) -> Plan:
        """Choose the images and make the key; the same plan for the same arguments.

        Raises:
            FlSimError: if the hospital has too few images or the model cannot carry the attack.
        """

    @abstractmethod
    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train the model on its task and hide the plan's images in it, in place.

        Attacks that act during training pass hooks to :func:`fl_sim.training.train`.

        Raises:
            FlSimError: if training diverges.
        """

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Write the payload into what is about to leave, the attacker's last touch.

        It comes after training and, in a federation, after the update was boosted. Attacks that
        hide everything by training leave the state as it is.

        Args:
            state: as trained.
            spec: how the network is built.
            plan: the attacker's.
            averaging: in a federation, what will be done with the state; ``None`` in a data lake.

        Raises:
            FlSimError: if the payload does not fit.
        """
        return Embedding(state)

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check all that a key holds before anything is done with it.

        A key is a file from anywhere: every setting, and every tensor's name, shape and type, is
        checked here, so that what follows can rely on them.

        Args:
            key: of this attack.
            artifact: the model file that is to be read with it.

        Raises:
            FlSimError: naming what is wrong, or does not fit the model.
        """

    @classmethod
    @abstractmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Read the images back.

        Called in a process that has only the two files, with a key that :meth:`check_key` passed.
        """

    @classmethod
    def variants(
        cls, artifact: Artifact, key: Key, public: torch.Tensor
    ) -> dict[str, Callable[[], Extraction]]:
        """Return other ways to extract the same images, by name, for a receiver who searches.

        Args:
            artifact: the model file.
            key: the attacker's.
            public: ``[m, channels, height, width]`` in [0, 1], images of the same kind, which tell
                what recovered ones should look like as a batch.

        Returns:
            Each does its work when called, and gives images in the order of :meth:`extract`. By
            default there is none.
        """
        return {}

    @classmethod
    def survival(cls, sent: State, arrived: State, payload: Payload, key: Key) -> dict[str, float]:
        """Return the share of wrong bits, or the relative error of values, by place.

        For those who measure: an attacker does not have ``sent``.

        Args:
            sent: the state dictionary that the payload was written into.
            arrived: what became of it.
            payload: what the carrier was given.
            key: the attacker's.

        Returns:
            By tensor name, and by ``"bit <number>"`` for carriers in chosen bits of a weight.
            Nothing for attacks without a carrier.
        """
        return {}


ATTACKS: Registry[type[Attack[Any]]] = Registry("attack", "fl_sim.attacks")
