"""Which hidden channels can be multiplied by a factor that what follows takes back.

ReLU, pooling and linear layers keep a positive factor, and batch normalisation in evaluation mode
divides it out (Neyshabur, Salakhutdinov and Srebro, "Path-SGD", NeurIPS 2015).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from fl_sim.models.channels import ChannelFlow, ChannelSlice
from fl_sim.models.graph import trace


@dataclass(frozen=True)
class Rescaling:
    """Channels that can each be multiplied by a positive factor, which what follows takes back.

    Args:
        channels: how many.
        rows: the weight and bias that make them: name, and dimension of the channels.
        normalization: the batch normalisation after them, whose running statistics take the
            factor, and its ``eps``.
        columns: without one, the next layer's weight, which takes the factor's inverse.
    """

    channels: int
    rows: tuple[tuple[str, int], ...]
    normalization: tuple[str, float] | None = None
    columns: ChannelSlice | None = None


def rescalings(model: nn.Module, input_shape: tuple[int, int, int]) -> list[Rescaling]:
    """Return the layers whose output channels can be rescaled, in forward order.

    Those are layers that only a batch normalisation follows, and those from which only operations
    that keep positive factors (ReLU, pooling, dropout, flattening) lead to one further layer.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    flow = ChannelFlow(trace(model, input_shape))
    flow.run()
    return [found for node in flow.traced.nodes if (found := _rescaling(flow, node)) is not None]


def rescale(state: Mapping[str, torch.Tensor], where: Rescaling, factors: torch.Tensor) -> None:
    """Multiply channels by positive factors, in place; answers in evaluation mode stay.

    Args:
        state: tensors by name; written to, without gradients.
        where: the channels.
        factors: float64 ``[channels]``.
    """

    def multiply(name: str, dim: int, by: torch.Tensor) -> None:
        tensor = state[name]
        shape = [-1 if axis == dim else 1 for axis in range(tensor.dim())]
        tensor.copy_(tensor.double() * by.to(tensor.device).view(shape))

    with torch.no_grad():
        for name, dim in where.rows:
            multiply(name, dim, factors)
        if where.columns is not None:
            columns = where.columns
            inverse = torch.ones(state[columns.tensor].shape[columns.dim], dtype=torch.float64)
            for positions in columns.positions:
                inverse[torch.from_numpy(positions)] = 1 / factors
            multiply(columns.tensor, columns.dim, inverse)
        if where.normalization is not None:
            name, eps = where.normalization
            variance = state[f"{name}.running_var"].double().cpu()
            scaled = variance * factors.square()
            # The part of the deviation that eps makes does not grow with the factor.
            multiply(f"{name}.weight", 0, ((scaled + eps) / (variance + eps)).sqrt() / factors)
            multiply(f"{name}.running_mean", 0, factors)
            multiply(f"{name}.running_var", 0, factors.square())


_HOMOGENEOUS_MODULES = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
)
_HOMOGENEOUS_FUNCTIONS = (
    functional.relu,
    functional.leaky_relu,
    functional.dropout,
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    torch.relu,
    torch.flatten,
    "relu",
    "flatten",
    "contiguous",
)
_WEIGHT_MODULES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _rescaling(flow: ChannelFlow, node: fx.Node) -> Rescaling | None:
    """Return how a layer's output can be rescaled, if it is a layer and it can be."""
    calls = [n.target for n in flow.traced.nodes if n.op == "call_module"]
    channels = flow.values.get(node)
    if not _is(flow, node, _WEIGHT_MODULES) or channels is None or calls.count(node.target) > 1:
        return None
    module: Any = flow.traced.module(node)
    if not isinstance(module, nn.Linear) and module.groups > 1:
        return None
    row_dim = int(isinstance(module, nn.ConvTranspose2d))
    rows = [(f"{node.target}.weight", row_dim)]
    rows += [(f"{node.target}.bias", 0)] if module.bias is not None else []
    end = _only_user(node)
    while end is not None and (
        _is(flow, end, _HOMOGENEOUS_MODULES) or end.target in _HOMOGENEOUS_FUNCTIONS
    ):
        end = _only_user(end)
    if end is None or calls.count(end.target) > 1:
        return None
    count = len(channels.atoms)
    if _is(flow, end, (nn.modules.batchnorm._BatchNorm,)) and end.args == (node,):
        norm: Any = flow.traced.module(end)
        if norm.affine and norm.track_running_stats:
            return Rescaling(count, tuple(rows), normalization=(str(end.target), norm.eps))
    columns = flow.values.get(end.all_input_nodes[0])
    if not _is(flow, end, _WEIGHT_MODULES) or flow.values.get(end) is None or columns is None:
        return None
    following: Any = flow.traced.module(end)
    if not isinstance(following, nn.Linear) and following.groups > 1:
        return None
    order = np.argsort(columns.atoms, kind="stable").reshape(count, -1).T
    dim = 1 - isinstance(following, nn.ConvTranspose2d)
    return Rescaling(
        count, tuple(rows), columns=ChannelSlice(f"{end.target}.weight", int(dim), order)
    )


def _is(flow: ChannelFlow, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    return node.op == "call_module" and isinstance(flow.traced.module(node), kinds)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
