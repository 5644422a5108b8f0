"""The cleaning of a Flower app's arrays: its network, its owner's images, and a defence."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fl_sim.defenses.base import DefenseReport, refuse_sealing
from fl_sim.errors import FlSimError
from fl_sim.models.entries import cast_like
from fl_sim.models.pixels import Normalization
from fl_sim.randomness import Stream
from fl_sim.verbs.cleaning import clean, defense_of
from fl_sim.verbs.images import is_labelled, outputs_told, pixels_of, split_of, task_of
from fl_sim.verbs.network import fits, given

State = dict[str, torch.Tensor]


class Cleaning:
    """A defence with all that it needs, ready to clean a state whenever a round ends.

    Args:
        model, held_out, defense, seed, normalize, classes, device: see
            ``Defended`` (strategies).
        settings: further keys of the defence.

    Raises:
        FlSimError: one sentence, if there is no such defence or model, or the images do not fit it.
    """

    def __init__(
        self,
        model: Any,
        held_out: Any,
        defense: Any,
        *,
        seed: int,
        normalize: Normalization,
        classes: int | None,
        device: str | None,
        settings: Mapping[str, Any],
    ) -> None:
        images, labels = held_out if _is_pair(held_out) else (held_out, None)
        self._defense, self.defense_name = defense_of(defense, settings)
        refuse_sealing(self._defense, self.defense_name, "a Flower app")
        self._held_out = split_of(images, labels, "held-out images")
        if self._defense.uses_labels and not is_labelled(self._held_out):
            raise FlSimError(
                f"The defence '{self.defense_name}' learns from labels; give held_out=(images, "
                f"labels)."
            )
        self._model, self._seed, self._device = model, seed, device
        self._normalize, self._classes = normalize, classes or outputs_told(self._held_out.labels)
        found = given(model, pixels_of(self._held_out), normalize, classes=self._classes, seed=seed)
        task_of(self._held_out, found.spec.classes, found.spec.task == "segmentation")
        self._network: nn.Module = found.plain
        self._buffers = {name for name, _ in self._network.named_buffers()}
        self._names: dict[str, str] = {}

    def require(self, arrays: State) -> None:
        """Learn the arrays' names, which are the network's or numbers in its order.

        Raises:
            FlSimError: naming the first entry that is not the network's.
        """
        own = self._network.state_dict()
        self._names = names_in(self._network, arrays)
        fits(self.renamed(arrays), self._network, "The initial ArrayRecord")
        further = next((name for name in arrays if self.name_of(name) not in own), None)
        if further is not None:
            raise FlSimError(
                f"The initial ArrayRecord has the entry '{further}', which the network "
                f"{type(self._network).__name__} has not; give the model that the app trains."
            )

    def name_of(self, name: str) -> str:
        """Return how the network calls an array."""
        return self._names.get(name, name)

    def is_statistic(self, name: str) -> bool:
        """Whether an array holds one of the network's buffers, and no weights."""
        return self.name_of(name) in self._buffers

    def __call__(
        self,
        state: State,
        server_round: int,
        reference: State | None,
        uploads: Sequence[State] = (),
    ) -> tuple[State, DefenseReport]:
        """Clean a state.

        Args:
            state: the arrays, by their own names.
            server_round: from 1.
            reference: see :class:`fl_sim.defenses.base.Release`; by the arrays' names.
            uploads: likewise, by the network's names; see :meth:`renamed`.

        Returns:
            The cleaned arrays, and what the defence did.
        """
        images, labels = self._held_out.images, self._held_out.labels
        cleaned = clean(
            self._model,
            images,
            labels if is_labelled(self._held_out) else None,
            defense=self._defense,
            state=self.renamed(state),
            normalize=self._normalize,
            classes=self._classes,
            reference=None if reference is None else self.renamed(reference),
            uploads=uploads,
            stream=Stream(self._seed, ("release", server_round)),
            device=self._device,
            progress=False,
        )
        entries = {n: cast_like(cleaned.state[self.name_of(n)], v) for n, v in state.items()}
        return entries, cleaned.report

    def renamed(self, state: State) -> State:
        """Return a state by the network's names."""
        return {self.name_of(name): value for name, value in state.items()}


def names_in(network: nn.Module, arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return how a network calls arrays: as they are, or in its order where they are numbers."""
    own = network.state_dict()
    numbered = list(arrays) == [str(number) for number in range(len(own))]
    return dict(zip(arrays, own if numbered else arrays, strict=True))


def _is_pair(held_out: Any) -> bool:
    """Whether images and labels come as two, and not together."""
    return isinstance(held_out, tuple | list) and len(held_out) == 2
