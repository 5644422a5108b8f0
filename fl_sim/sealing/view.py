"""What of a sealed model is secret, and what its receiver is left with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fl_sim.artifact import Artifact
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.sealing.bases import Base
from fl_sim.sealing.forms import Shape

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sealing:
    """What of a model is sealed, and how.

    Args:
        head: names of the layers, in forward order.
        entries: names of their weights and biases in the state dictionary.
        shape: of the head, its form and its parameters.
        base: what it was trained on.
        limit: questions that its owner will answer at most.
    """

    head: tuple[str, ...]
    entries: tuple[str, ...]
    shape: Shape
    base: Base
    limit: int


@dataclass(frozen=True)
class ReceiversView:
    """All that a receiver can read of a sealed model: everything but the head.

    Args:
        spec: how the network is built.
        base: what the head was trained on, by name and hash.
        clear: every other entry of the model file.
        sealed: shapes of the entries that he cannot read, by name.
        head: names of the layers that they are of.
        shape: of the head.
    """

    spec: ModelSpec
    base: Base
    clear: State
    sealed: dict[str, tuple[int, ...]]
    head: tuple[str, ...]
    shape: Shape

    def artifact(self) -> Artifact:
        """Return the view as a model file, which is what extractors read; see :func:`unread`."""
        return Artifact(self.spec, {**self.clear, **unread(self.sealed)})


def receivers_view(
    spec: ModelSpec, state: Mapping[str, torch.Tensor], sealing: Sealing
) -> ReceiversView:
    """Return what the receiver of a model sees once its head is sealed.

    Args:
        spec: the network.
        state: of the owner's model.
        sealing: what is sealed of it.
    """
    return ReceiversView(
        spec=spec,
        base=sealing.base,
        clear={name: value for name, value in state.items() if name not in sealing.entries},
        sealed={name: tuple(state[name].shape) for name in sealing.entries},
        head=sealing.head,
        shape=sealing.shape,
    )


def unread(sealed: Mapping[str, tuple[int, ...]]) -> State:
    """Return what stands for entries that nobody can read, so that any extractor can run.

    A fresh linear layer's weights and biases, as torch initialises it, always the same: uniform in
    ``[-1, 1] / sqrt(inputs)``. They tell nothing of the sealed ones.

    Args:
        sealed: shapes by name, a layer's weight and then its bias.
    """
    found, inputs = {}, 1
    for name, shape in sealed.items():
        if len(shape) == 2:
            inputs = max(1, shape[1])
        generator = Stream(0).torch_generator(f"unread {name}")
        found[name] = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(inputs)
    return found


def as_received(state: Mapping[str, torch.Tensor], sealing: Sealing | None) -> State:
    """Return a model's entries as its receiver has them, in their order; see :func:`unread`.

    Args:
        state: of the owner's model.
        sealing: what is sealed of it; ``None`` for nothing, then it is the state itself.
    """
    if sealing is None:
        return dict(state)
    stand_ins = unread({name: tuple(state[name].shape) for name in sealing.entries})
    return {
        name: stand_ins[name].to(value.dtype) if name in stand_ins else value
        for name, value in state.items()
    }
