"""What a defence at release is: it changes the model on the data owner's held-out images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.registry import Registry
from fl_sim.sealing.view import Sealing
from fl_sim.settings import Settings

DefenseSettingsT = TypeVar("DefenseSettingsT", bound=Settings)
Evaluate = Callable[[nn.Module], float]


@dataclass
class DefenseReport:
    """What a defence did.

    Args:
        epochs: one dictionary an epoch: ``loss``, and ``utility`` where an evaluation was given.
        relative_change: ``||w_after - w_before|| / ||w_before||`` by layer, in forward order.
        learning_rates: by layer, in forward order, where the defence has them.
        images: held-out images used.
        seconds: wall time.
        figures: what else can be said in a number, by the name of its row in the table.
        cap_bits: the most bits that can have passed from the model as it came, with its further
            entries, into what leaves, whoever made it; see :mod:`fl_sim.defenses.ledger`. ``None``
            claims nothing: then it is all bits of what leaves.
        zcdp: of a defence that adds noise with a proof, what the release costs of one hospital's
            privacy, as rho of zero-concentrated differential privacy (Bun and Steinke 2016, arXiv
            1605.02065): the Rényi divergence of every order ``alpha`` is at most ``rho * alpha``,
            and releases add up. ``None`` promises nothing.
        sealed: what of the model leaves encrypted, if anything. Then the model is its owner's, and
            a receiver has what :func:`fl_sim.sealing.view.as_received` gives.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    relative_change: dict[str, float] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    cap_bits: float | None = None
    zcdp: float | None = None
    sealed: Sealing | None = None


@dataclass(frozen=True)
class Release:
    """What a defence is given: a model about to leave, and what its owner has to clean it with.

    Args:
        model: cleaned in place.
        spec: how it is built.
        held_out: the data owner's clean images; the only ones that a defence uses unless it says
            otherwise.
        task: the utility task.
        stream: where randomness is derived from.
        evaluate: called after each epoch to log utility; must not steer the defence.
        progress: where to report.
        entries: entries of the model file that the network does not have. They leave with it,
            unless the defence changes or removes them, in place.
        reference: a state dictionary of the same network that the owner knows to be clean: in a
            federation the release before, where that was cleaned, or the first broadcast.
        training: the images that the model was trained on, where whoever cleans it has them: the
            owner of a data lake does, a federation's server does not.
        uploads: what the hospitals sent, state dictionaries of the same network in the hospitals'
            order, where whoever cleans it has them: a federation's server does, the owner of a data
            lake does not. Each one is read anew whenever it is asked for, so ask for one at a time.
    """

    model: nn.Module
    spec: ModelSpec
    held_out: Split
    task: Task
    stream: Stream
    evaluate: Evaluate | None = None
    progress: Progress = SILENT
    entries: dict[str, torch.Tensor] = field(default_factory=dict)
    reference: dict[str, torch.Tensor] | None = None
    training: Split | None = None
    uploads: Sequence[dict[str, torch.Tensor]] | None = None

    def owned(self) -> Split:
        """Return the training images.

        Raises:
            FlSimError: if whoever cleans the model has none.
        """
        if self.training is None or len(self.training) == 0:
            raise FlSimError(
                "The defence asks for the images that the model was trained on, which the owner of "
                'a data lake has and the server of a federation has not; set images = "held_out", '
                "or hand them over (training=)."
            )
        return self.training

    def received(self) -> Sequence[dict[str, torch.Tensor]]:
        """Return the hospitals' uploads, one or more.

        Raises:
            FlSimError: if whoever cleans the model has none.
        """
        if not self.uploads:
            raise FlSimError(
                "The defence asks for the hospitals' uploads, which the server of a federation has "
                "and whoever has one model has not, nor a later step of a chain; put it first, or "
                "take consistent_distillation."
            )
        return self.uploads


class Defense(ABC, Generic[DefenseSettingsT]):
    """A defence at release. Subclass, set ``Settings``, and register with ``DEFENSES``."""

    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: DefenseSettingsT) -> None:
        self.settings = settings

    @property
    def needs_uploads(self) -> bool:
        """Whether it asks for the uploads of a federation's hospitals."""
        return False

    @property
    def seals(self) -> bool:
        """Whether a part of what leaves is encrypted: an export form, for the last release only."""
        return False

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from the held-out images' labels."""
        return True

    @abstractmethod
    def apply(self, release: Release) -> DefenseReport:
        """Clean the model, in place, and say what was done.

        Raises:
            FlSimError: if the held-out images do not suffice.
        """


def refuse_sealing(defense: Defense[Any], name: str, place: str) -> None:
    """Refuse an export form where what leaves must be a model that anybody can run.

    Args:
        defense: the defence.
        name: how it is called.
        place: where it was named, for example ``"fl-sim clean"``.

    Raises:
        FlSimError: what to take instead.
    """
    if defense.seals:
        raise FlSimError(
            f"The defence '{name}' seals the model's head, so {place} would write a model without "
            f"it; take fl-sim rhe seal, fl_sim.seal, or a scenario."
        )


DEFENSES: Registry[type[Defense[Any]]] = Registry("defense", "fl_sim.defenses")
