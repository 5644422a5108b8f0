"""What is audited, and what a check says of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.carriers.dead import dead_weights
from fl_sim.errors import FlSimError
from fl_sim.models import build, layers
from fl_sim.models.base import ModelSpec

State = dict[str, torch.Tensor]
ALPHA = 1e-6
"""Chance that one statistical check of a whole clean file gives a finding; each check divides it by
the number of its tests (Bonferroni)."""

FEWEST = 1024
"""Tensors with fewer elements are left out of statistics of values."""


@dataclass(frozen=True)
class Subject:
    """A state dictionary under audit.

    Args:
        state: entries by name, on the CPU.
        spec: the architecture, where it is known.
        size_known: whether the image size in ``spec`` is; shapes alone often do not tell it.
        reference: an earlier state that the owner trusts, such as the weights that training began
            with; ``None`` without one.
    """

    state: State
    spec: ModelSpec | None = None
    size_known: bool = True
    reference: State | None = None

    @cached_property
    def network(self) -> nn.Module | None:
        """A fresh network of the architecture, where it is known."""
        return None if self.spec is None else build(self.spec)

    @cached_property
    def own(self) -> State:
        """The fresh network's state dictionary; empty where the architecture is not known."""
        return {} if self.network is None else self.network.state_dict()

    @cached_property
    def parameters(self) -> set[str]:
        """Names of the parameters; without an architecture, of all floating-point entries."""
        if self.network is not None:
            return {name for name, _ in self.network.named_parameters()}
        return {name for name, tensor in self.state.items() if tensor.is_floating_point()}

    @cached_property
    def dead(self) -> State:
        """Masks of the weights that no image can reach, by name; empty where that is not known."""
        if self.spec is None or not self.size_known:
            return {}
        return self._traced(lambda spec: dead_weights(spec))

    @cached_property
    def unused(self) -> set[str]:
        """Parameters that the network's output does not depend on."""
        if self.network is None or self.spec is None:
            return set()
        network, shape = self.network, self.spec.input_shape
        try:
            found = layers(network, shape, "tensor")
        except FlSimError:
            return set()
        return {name for layer in found if not layer.used for name in layer.parameters}

    @cached_property
    def fits(self) -> bool:
        """Whether the architecture's every entry is there, in its shape."""
        state = self.state
        return bool(self.own) and all(
            name in state and state[name].shape == tensor.shape for name, tensor in self.own.items()
        )

    def model(self) -> nn.Module:
        """Return the network with the audited weights, in evaluation mode; only where it fits."""
        assert self.spec is not None
        network = build(self.spec)
        network.load_state_dict({name: self.state[name] for name in self.own})
        return network.eval()

    def weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Return the weights with two dimensions or more, flattened, as float32."""
        for name, tensor in self.state.items():
            wide = tensor.is_floating_point() and tensor.dim() >= 2 and tensor.numel() >= FEWEST
            if wide:
                yield name, tensor.float().contiguous().view(-1).numpy()

    def _traced(self, find: Any) -> State:
        try:
            found: State = find(self.spec)
        except FlSimError:
            return {}
        state = self.state
        return {n: m for n, m in found.items() if n in state and state[n].shape == m.shape}
