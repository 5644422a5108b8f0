"""What is audited, and what a check says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from fl_sim.carriers.dead import dead_weights
from fl_sim.errors import FlSimError
from fl_sim.models import build, layers
from fl_sim.models.base import ModelSpec

State = dict[str, torch.Tensor]
UNKNOWN = "the network is not known; give --model"
UNSIZED = "the size of the network's images is not known; give --size"

COUNTED = "num_batches_tracked"
"""The last part of names of counts of batches, which files of old versions of torch lack."""

ALPHA = 1e-6
"""Chance that one statistical check of a whole clean file gives a finding; each check divides it by
the number of its tests (Bonferroni)."""

FEWEST = 1024
"""Tensors with fewer elements are left out of statistics of values."""


class Unchecked(Exception):
    """A check that could not run, and why."""


@dataclass(frozen=True)
class Subject:
    """A state dictionary under audit.

    Args:
        state: entries by name, strided tensors on the CPU; those of the network by the names that
            it gives them.
        spec: the architecture, where it is known.
        size_known: whether the image size in ``spec`` is; shapes alone often do not tell it.
        reference: an earlier state that the owner trusts, such as the weights that training began
            with; ``None`` without one.
        layouts: how entries are stored that are not plain tensors, by name.
    """

    state: State
    spec: ModelSpec | None = None
    size_known: bool = True
    reference: State | None = None
    layouts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def network(self) -> nn.Module | None:
        """A fresh network of the architecture, where it is known."""
        return None if self.spec is None else build(self.spec)

    def known(self) -> tuple[nn.Module, ModelSpec]:
        """Return a fresh network and its specification.

        Raises:
            Unchecked: if the network is not known.
        """
        if self.network is None or self.spec is None:
            raise Unchecked(UNKNOWN)
        return self.network, self.spec

    def known_with_size(self) -> tuple[nn.Module, ModelSpec]:
        """Return the same where the images' size is known, too.

        Raises:
            Unchecked: if the network or the size is not known.
        """
        found = self.known()
        if not self.size_known:
            raise Unchecked(UNSIZED)
        return found

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
        try:
            return self.traced_dead()
        except Unchecked:
            return {}

    def traced_dead(self) -> State:
        """Return the same masks.

        Raises:
            Unchecked: if they cannot be told.
        """
        _, spec = self.known_with_size()
        try:
            found = dead_weights(spec)
        except FlSimError as error:
            raise Unchecked(str(error)) from None
        state = self.state
        return {n: m for n, m in found.items() if n in state and state[n].shape == m.shape}

    def unused(self) -> set[str]:
        """Return the parameters that the network's output does not depend on.

        Raises:
            Unchecked: if the network is not known or cannot be traced.
        """
        network, spec = self.known()
        try:
            found = layers(network, spec.input_shape, "tensor")
        except FlSimError as error:
            raise Unchecked(str(error)) from None
        return {name for layer in found if not layer.used for name in layer.parameters}

    @cached_property
    def fits(self) -> bool:
        """Whether the architecture's every entry is there in its shape, counts of batches apart."""
        state = self.state
        return bool(self.own) and all(
            name in state and state[name].shape == tensor.shape and name not in self.layouts
            for name, tensor in self.own.items()
            if name in state or not name.endswith(COUNTED)
        )

    def model(self) -> nn.Module:
        """Return the network with the audited weights, in evaluation mode; only where it fits."""
        assert self.spec is not None
        network = build(self.spec)
        network.load_state_dict(self.own | {n: t for n, t in self.state.items() if n in self.own})
        return network.eval()
