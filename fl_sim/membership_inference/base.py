"""What a membership attack is: scores of images from the answers of a target and of references."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.errors import FlSimError
from fl_sim.membership_inference.references import MOST_REFERENCES, References
from fl_sim.membership_inference.signals import Floats
from fl_sim.registry import Registry
from fl_sim.settings import Settings

Mode = Literal["online", "offline"]
MODES: tuple[Mode, ...] = ("online", "offline")


class MembershipSettings(Settings):
    """How membership is inferred.

    Args:
        name: the attack: ``"rmia"``, which does with few reference models, or ``"lira"``.
        mode: whether the attacker has reference models that were trained with the very image
            (``"online"``), or takes only those without it (``"offline"``).
        references: reference models, an even number; each is trained as the target is, on half of
            all images. LiRA needs 4, and is meant for 16 and more.
    """

    name: str = "rmia"
    mode: Mode = "online"
    references: int = Field(4, ge=2, le=MOST_REFERENCES, multiple_of=2)


@dataclass(frozen=True)
class Scores:
    """What an attack says of images.

    Args:
        order: ``[n]``, higher where an image rather is a member; attacks decide by a threshold.
        risk: ``[n]``, the attack's own score of each image, in [0, 1]; among members, and among
            the others, it never falls where ``order`` rises.
    """

    order: Floats = field(repr=False)
    risk: Floats = field(repr=False)


class Method(ABC):
    """A membership attack; see :data:`METHODS`.

    Args:
        mode: which reference models it takes.
    """

    fewest = 2
    """Reference models that it needs."""

    def __init__(self, mode: Mode = "online") -> None:
        self.mode = mode

    @abstractmethod
    def score(self, target: Floats, known: References, fresh: NDArray[np.bool_]) -> Scores:
        """Score images by what the target and the reference models answer to them.

        Args:
            target: ``[n]``, the target's log-odds of each image's label.
            known: the reference models' ``[models, n]``; half of them have seen each image.
            fresh: ``[n]``, images that the attacker knows to be no members, which he compares with.
        """


METHODS: Registry[type[Method]] = Registry("membership attack", "fl_sim.membership_inference")
"""Attacks by name."""


def method_of(name: str, mode: Mode, references: int) -> Method:
    """Return an attack.

    Raises:
        FlSimError: if there is none of that name, or it needs more reference models.
    """
    kind = METHODS.get(name)
    if references < kind.fewest:
        raise FlSimError(
            f"The membership attack '{name}' needs {kind.fewest} reference models or more, and "
            f"there are {references}; ask for more, or take rmia."
        )
    return kind(mode)


def mean_over(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Return each image's mean over the models that are chosen for it, ``[n]``.

    Args:
        values: ``[models, n]``.
        chosen: ``[models, n]``, at least one model an image.

    Raises:
        FlSimError: if an image has no such model.
    """
    counts = chosen.sum(axis=0)
    if (counts == 0).any():
        raise FlSimError(
            "Of every image some reference models must have been trained with it, and some without."
        )
    return np.asarray(np.where(chosen, values, 0.0).sum(axis=0) / counts, dtype=np.float64)
