"""Which hidden channels of a network can change places without changing what it computes.

A channel is produced by a row of one weight tensor, scaled by an element of a normalisation, and
read by a column of the next. Residual additions tie the channels of several layers together,
concatenations put them at an offset, flattening spreads each over several columns. Following them
through the traced graph gives groups of channels that can be permuted if all these rows, elements
and columns are permuted together. (Permutation symmetry: Hecht-Nielsen 1990; over residual
networks: Ainsworth, Hayase and Srinivasa, "Git Re-Basin", ICLR 2023.)
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional

from fl_sim.models.graph import TracedModel, trace

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelSlice:
    """Where the channels of a group lie in one dimension of one tensor.

    Args:
        tensor: name in the state dictionary.
        dim: dimension.
        positions: ``[copies, channels]``: the indices of each channel along the dimension. More
            than one copy after a flattening, where each pixel of a channel has a column.
    """

    tensor: str
    dim: int
    positions: Indices

    def fits(self, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether a state has the tensor, with all these indices."""
        tensor = state.get(self.tensor)
        if tensor is None or tensor.dim() <= self.dim:
            return False
        return bool(self.positions.max() < tensor.shape[self.dim])


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be permuted among themselves.

    Args:
        channels: how many, two or more.
        slices: every place where they lie.
    """

    channels: int
    slices: tuple[ChannelSlice, ...]


def channel_groups(model: nn.Module, input_shape: tuple[int, int, int]) -> list[ChannelGroup]:
    """Return the groups of hidden channels that can be permuted, in forward order.

    Channels of the input and output, and those that meet an operation which is not known to treat
    all channels alike (attention, reshaping), belong to no group.

    Args:
        model: any network that ``torch.fx`` can trace.
        input_shape: channels, height and width of one image.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    flow = ChannelFlow(trace(model, input_shape))
    flow.run()
    return flow.groups()


def permute(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], orders: Sequence[Indices]
) -> None:
    """Permute the channels of groups, in place; see :func:`permuted`.

    Args:
        state: tensors by name; those of the groups are written to, without gradients.
        groups: the channels.
        orders: a permutation of each group's channels.
    """
    with torch.no_grad():
        for name, tensor in permuted(state, groups, orders).items():
            if tensor is not state[name]:
                state[name].copy_(tensor)


def permuted(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], orders: Sequence[Indices]
) -> dict[str, torch.Tensor]:
    """Return a state with the channels of groups permuted; other tensors are the same objects.

    Args:
        state: tensors by name; where one is missing, or too small, it is passed over.
        groups: the channels.
        orders: for each group a permutation of ``range(group.channels)``: channel ``k`` becomes the
            former ``order[k]``.
    """
    # Each dimension of each tensor once, whatever number of groups has a part of it.
    sources: dict[tuple[str, int], Indices] = {}
    for group, order in zip(groups, orders, strict=True):
        for part in group.slices:
            if part.fits(state):
                size = state[part.tensor].shape[part.dim]
                source = sources.setdefault((part.tensor, part.dim), np.arange(size))
                source[part.positions] = part.positions[:, order]
    result = dict(state)
    for (name, dim), source in sources.items():
        index = torch.from_numpy(source).to(state[name].device)
        result[name] = result[name].index_select(dim, index)
    return result


def permutable(groups: list[ChannelGroup], state: Mapping[str, torch.Tensor], name: str) -> float:
    """Return the share of one tensor's elements that some group's permutation can move."""
    fixed = 1.0
    by_dim: dict[int, int] = {}
    for group in groups:
        for part in group.slices:
            if part.tensor == name:
                by_dim[part.dim] = by_dim.get(part.dim, 0) + part.positions.size
    for dim, count in by_dim.items():
        fixed *= 1 - count / state[name].shape[dim]
    return 1 - fixed


def permutable_share(model: nn.Module, groups: list[ChannelGroup]) -> float:
    """Return the share of a network's parameters that permutations can move, from 0 to 1."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = sum(p.numel() for p in parameters.values())
    moved = sum(permutable(groups, parameters, n) * p.numel() for n, p in parameters.items())
    return moved / total


@dataclass(frozen=True)
class Channels:
    """The channels along one axis of a value.

    Args:
        atoms: ``[size]``: a number for each channel; the same where it is the same channel.
        slots: ``[size]``: tells apart the copies of one channel, and nothing else.
        axis: which axis of the value.
    """

    atoms: Indices
    slots: Indices
    axis: int = 1


_Place = tuple[int, int, int]
"""A dimension of a tensor or (negative) a constraint, the slot in it, and the label there."""


class ChannelFlow:
    """Follows channels through a graph and notes where they lie in parameters and buffers."""

    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        self.values: dict[fx.Node, Channels] = {}
        self._parent: list[int] = []
        self._fixed: set[int] = set()
        self._uses: dict[tuple[str, int], Channels] = {}
        self._constraints: list[tuple[Channels, Indices]] = []

    # ------------------------------------------------------------------ channels

    def new(self, size: int, axis: int = 1) -> Channels:
        """Return channels that nothing is known of yet."""
        first = len(self._parent)
        self._parent.extend(range(first, first + size))
        return Channels(np.arange(first, first + size), np.zeros(size, np.int64), axis)

    def fix(self, channels: Channels) -> None:
        """Keep channels where they are."""
        self._fixed.update(int(atom) for atom in channels.atoms)

    def unite(self, one: Channels, other: Channels) -> None:
        """Declare channels of two values of the same size to be the same, one by one."""
        alike = np.array_equal(one.slots, other.slots) or (
            len(set(one.atoms)) == len(one.atoms) and len(set(other.atoms)) == len(other.atoms)
        )
        if len(one.atoms) != len(other.atoms) or not alike:
            self.fix(one)
            self.fix(other)
            return
        for first, second in zip(one.atoms, other.atoms, strict=True):
            self._parent[self._root(int(first))] = self._root(int(second))

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def use(self, tensor: str, dim: int, channels: Channels) -> None:
        """Note that channels lie along a dimension of a tensor."""
        known = self._uses.get((tensor, dim))
        if known is not None:  # a module that is called twice
            self.unite(known, channels)
        else:
            self._uses[tensor, dim] = channels

    def keep_apart(self, channels: Channels, labels: Indices) -> None:
        """Let channels change places only where their labels are the same."""
        self._constraints.append((channels, labels))

    # --------------------------------------------------------------------- graph

    def run(self) -> None:
        """Follow the channels through every node."""
        for node in self.traced.nodes:
            rule = self._rule(node)
            result = rule(self, node) if rule is not None else None
            if result is None:
                for source in node.all_input_nodes:
                    if source in self.values:
                        self.fix(self.values[source])
                result = self._opaque(node)
            if result is not None:
                self.values[node] = result

    def _rule(self, node: fx.Node) -> "Rule | None":
        if node.op == "call_module":
            module = self.traced.module(node)
            return next((r for kinds, r in _MODULE_RULES if isinstance(module, kinds)), None)
        if node.op in ("call_function", "call_method"):
            return _FUNCTION_RULES.get(node.target)
        return None

    def _opaque(self, node: fx.Node) -> Channels | None:
        """Channels that stay where they are, of an input or of what an unknown operation makes."""
        shape = self.traced.shapes.get(node.name)
        if shape is None or len(shape) < 2:
            return None
        axis = len(shape) - 1 if len(shape) == 3 else 1
        channels = self.new(shape[axis], axis)
        self.fix(channels)
        return channels

    def input_of(self, node: fx.Node) -> Channels | None:
        """Return the channels of a node's first input."""
        sources = node.all_input_nodes
        return self.values.get(sources[0]) if sources else None

    # -------------------------------------------------------------------- result

    def groups(self) -> list[ChannelGroup]:
        """Return channels that lie in the same places, in groups."""
        roots = np.array([self._root(atom) for atom in range(len(self._parent))], np.int64)
        fixed = {int(roots[atom]) for atom in self._fixed}
        uses = list(self._uses.items())
        places_of: dict[int, list[_Place]] = {}
        for number, (_, channels) in enumerate(uses):
            for atom, slot in zip(roots[channels.atoms], channels.slots, strict=True):
                places_of.setdefault(int(atom), []).append((number, int(slot), 0))
        for number, (channels, labels) in enumerate(self._constraints):
            for atom, slot, label in zip(
                roots[channels.atoms], channels.slots, labels, strict=True
            ):
                places_of.setdefault(int(atom), []).append((-1 - number, int(slot), int(label)))
        members: dict[tuple[_Place, ...], list[int]] = {}
        for atom, places in places_of.items():
            # A channel twice in one place cannot be told from itself.
            if atom not in fixed and len(set(places)) == len(places):
                members.setdefault(tuple(sorted(places)), []).append(atom)
        return [
            ChannelGroup(len(atoms), tuple(self._slices(uses, roots, places, atoms)))
            for places, atoms in members.items()
            if len(atoms) > 1
        ]

    def _slices(
        self,
        uses: list[tuple[tuple[str, int], Channels]],
        roots: Indices,
        places: tuple[_Place, ...],
        atoms: list[int],
    ) -> list[ChannelSlice]:
        slices = []
        rank = np.full(len(roots), -1)
        rank[atoms] = np.arange(len(atoms))
        for number in sorted({place[0] for place in places if place[0] >= 0}):
            (tensor, dim), channels = uses[number]
            slots = np.array(sorted(slot for n, slot, _ in places if n == number))
            ranks = rank[roots[channels.atoms]]
            own = np.flatnonzero(ranks >= 0)
            positions = np.empty((len(slots), len(atoms)), np.int64)
            positions[np.searchsorted(slots, channels.slots[own]), ranks[own]] = own
            slices.append(ChannelSlice(tensor, dim, positions))
        return slices


def _pass(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """An operation on each channel by itself that keeps them in place."""
    return flow.input_of(node)


def _weights(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """A convolution or linear layer."""
    module: Any = flow.traced.module(node)
    inputs = flow.input_of(node)
    if inputs is None:
        return None
    name = f"{node.target}."
    linear = isinstance(module, nn.Linear)
    last = len(flow.traced.shapes[node.name]) - 1
    if linear and inputs.axis != last:
        return None
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    groups = 1 if linear else module.groups
    if groups == 1:
        outputs = flow.new(flow.traced.shapes[node.name][last if linear else 1], inputs.axis)
        flow.use(name + "weight", 1 - transposed, inputs)
        flow.use(name + "weight", int(transposed), outputs)
    elif groups == module.in_channels == module.out_channels:
        outputs = inputs
        flow.use(name + "weight", 0, outputs)
    else:
        return None
    if module.bias is not None:
        flow.use(name + "bias", 0, outputs)
    return outputs


def _normalization(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Batch or instance normalisation, or that of groups of channels; PReLU likewise."""
    module = flow.traced.module(node)
    channels = flow.input_of(node)
    if channels is None:
        return None
    if isinstance(module, nn.GroupNorm):
        in_group = len(channels.atoms) // module.num_groups
        if module.num_groups < len(channels.atoms):
            flow.keep_apart(channels, np.arange(len(channels.atoms)) // in_group)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dim() == 1 and len(tensor) == len(channels.atoms):
            flow.use(f"{node.target}.{name}", 0, channels)
    return channels


def _prelu(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    module: Any = flow.traced.module(node)
    return _pass(flow, node) if module.num_parameters == 1 else _normalization(flow, node)


def _join(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """An addition or product, element by element; a number joins nothing."""
    values = [flow.values.get(source) for source in node.all_input_nodes]
    shapes = [flow.traced.shapes.get(source.name) for source in node.all_input_nodes]
    known = [value for value in values if value is not None]
    ranks = {len(shape) for shape in shapes if shape is not None}
    if len(known) < len(values) or not known or len(ranks) > 1:
        return None
    if len({(value.axis, len(value.atoms)) for value in known}) > 1:
        return None
    for other in known[1:]:
        flow.unite(known[0], other)
    return known[0]


def _concatenate(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    arguments: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False))
    arguments.update(node.kwargs)
    parts = [flow.values.get(source) for source in arguments["tensors"]]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or arguments.get("dim", 0) not in {part.axis for part in known}:
        return None
    if len({part.axis for part in known}) > 1:
        return None
    # Parts lie in slots of their own, in case that a channel is in several of them.
    atoms = np.concatenate([part.atoms for part in known])
    base = max(int(part.slots.max(initial=0)) for part in known) + 1
    slots = [part.slots + number * base for number, part in enumerate(known)]
    return Channels(atoms, np.concatenate(slots), known[0].axis)


def _flatten(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Flattening of all but the batch: each channel becomes as many as it has pixels."""
    channels, source = flow.input_of(node), node.all_input_nodes[0]
    before = flow.traced.shapes.get(source.name)
    after = flow.traced.shapes.get(node.name)
    if channels is None or before is None or after is None or channels.axis != 1:
        return None
    if len(after) != 2 or after[0] != before[0]:
        return None
    pixels = after[1] // len(channels.atoms)
    slots = channels.slots[:, None] * pixels + np.arange(pixels)
    return Channels(np.repeat(channels.atoms, pixels), slots.reshape(-1))


_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ReplicationPad2d,
)
Rule = Callable[[ChannelFlow, fx.Node], Channels | None]
"""What becomes of the channels at a node; ``None`` where it cannot be told."""

_MODULE_RULES: list[tuple[Any, Rule]] = [
    ((nn.Conv2d, nn.ConvTranspose2d, nn.Linear), _weights),
    (nn.modules.batchnorm._BatchNorm, _normalization),
    ((nn.modules.instancenorm._InstanceNorm, nn.GroupNorm), _normalization),
    (nn.PReLU, _prelu),
    (nn.Flatten, _flatten),
    (_ELEMENTWISE, _pass),
]
_FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            functional.relu,
            functional.relu6,
            functional.leaky_relu,
            functional.gelu,
            functional.silu,
            functional.dropout,
            functional.max_pool2d,
            functional.avg_pool2d,
            functional.adaptive_avg_pool2d,
            functional.interpolate,
            torch.relu,
            torch.sigmoid,
            torch.tanh,
            "relu",
            "sigmoid",
            "tanh",
            "contiguous",
            "clone",
        ),
        _pass,
    ),
    **dict.fromkeys(
        (
            operator.add,
            operator.iadd,
            operator.mul,
            operator.imul,
            torch.add,
            torch.mul,
            "add",
            "add_",
            "mul",
            "mul_",
        ),
        _join,
    ),
    **dict.fromkeys((torch.cat, torch.concat), _concatenate),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
}
