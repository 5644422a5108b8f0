"""What an attack is.

An attack acts in two places that share nothing but files. Inside the hospital it plans (which
images, which key) and trains; outside, the receiver extracts with the artifact and the key alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.artifact import Artifact, Key
from fl_sim.data.base import Split, Task
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.registry import Registry
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, TrainReport


class AttackSettings(Settings):
    """Keys every attack understands.

    Args:
        images: how many training images the attacker wants to take out.
    """

    images: int = Field(64, ge=1)


AttackSettingsT = TypeVar("AttackSettingsT", bound=AttackSettings)


@dataclass(frozen=True)
class Plan:
    """What the attacker decides before training.

    Args:
        indices: which of the hospital's images are stolen, ``[n]``, in the order in which they
            are to be recovered.
        targets: those images, float32 ``[n, channels, height, width]`` in [0, 1].
        key: what the receiver needs besides the artifact; known or carried outside beforehand.
    """

    indices: NDArray[np.int64]
    targets: torch.Tensor
    key: Key


class Attack(ABC, Generic[AttackSettingsT]):
    """An attack on a training run. Subclass, set ``Settings``, and register with ``ATTACKS``."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings

    def __init__(self, settings: AttackSettingsT) -> None:
        self.settings = settings

    @abstractmethod
    def plan(self, data: Split, task: Task, spec: ModelSpec, stream: Stream) -> Plan:
        """Choose the images and make the key; the same plan for the same arguments.

        Args:
            data: the attacked hospital's training images.
            task: their task.
            spec: the network that will be trained.
            stream: where randomness is derived from; the same in every round.

        Raises:
            FlSimError: if the hospital has too few images or the model cannot carry the attack.
        """

    @abstractmethod
    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train the model on its task and hide the plan's images in it, in place.

        Attacks that act during training pass hooks to :func:`fl_sim.training.train`; those that
        act afterwards change ``run.model`` when it returns.

        Raises:
            FlSimError: if training diverges.
        """

    @classmethod
    @abstractmethod
    def extract(cls, artifact: Artifact, key: Key) -> torch.Tensor:
        """Read the images back: float32 ``[n, channels, height, width]``, in the plan's order.

        Called in a process that has only the two files. Values may be outside [0, 1] or not
        finite; measuring deals with that.
        """


ATTACKS: Registry[type[Attack[Any]]] = Registry("attack", "fl_sim.attacks")
