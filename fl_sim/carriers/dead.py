"""Dead weights: elements of convolution kernels that never touch data, at the size of these images.

On a 1 x 1 feature map with padding 1, eight of nine taps of a 3 x 3 kernel meet only the padding's
zeros. Nothing that the network computes depends on them, so no gradient reaches them either, and no
fine-tuning moves them, but for weight decay, which scales all of them alike.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models import build, layers, trace
from fl_sim.models.base import ModelSpec
from fl_sim.models.graph import TracedModel
from fl_sim.models.reachable import leading_padding, live_taps

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def dead_weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    """Return the dead elements of a network: boolean masks by parameter name, empty ones not.

    They follow from the architecture alone (shapes of the traced graph, kernels, strides, padding
    and dilation), so sender and receiver find the same. A layer used more than once is dead where
    all its uses are.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    return {name: mask.clone() for name, mask in _dead(spec.model_dump_json()).items()}


def forward_order(spec: ModelSpec) -> list[str]:
    """Return the names of a network's parameters from its input to its output.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    return list(_order(spec.model_dump_json()))


@lru_cache(maxsize=4)
def _order(spec_json: str) -> tuple[str, ...]:
    spec = ModelSpec.model_validate_json(spec_json)
    return tuple(layer.name for layer in layers(build(spec), spec.input_shape, "tensor"))


@lru_cache(maxsize=4)
def _dead(spec_json: str) -> dict[str, torch.Tensor]:
    spec = ModelSpec.model_validate_json(spec_json)
    network = build(spec)
    try:
        found = _by_graph(network, trace(network, spec.input_shape))
    except FlSimError as error:  # control flow on values
        found = _by_running(network, spec, error)
    return {name: mask for name, mask in found.items() if mask.any()}


def _by_graph(network: nn.Module, traced: TracedModel) -> dict[str, torch.Tensor]:
    parameters = dict(network.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    dead: dict[str, torch.Tensor] = {}
    seen: set[str] = set()
    for node in traced.nodes:
        if node.op == "get_attr":  # used by a function, which may read all of it
            tensor = parameters.get(str(node.target))
            if tensor is not None:
                name = names[id(tensor)]
                dead[name] = torch.zeros(tensor.shape, dtype=torch.bool)
                seen.add(name)
        if node.op != "call_module":
            continue
        module = traced.module(node)
        own = _dead_taps_of_node(module, node, traced)
        for parameter in module.parameters():
            name = names[id(parameter)]
            mask = torch.zeros(parameter.shape, dtype=torch.bool)
            if own is not None and parameter is module.weight:
                mask |= own
            dead[name] = dead[name] & mask if name in seen else mask
            seen.add(name)
    return dead


def _by_running(
    network: nn.Module, spec: ModelSpec, untraced: FlSimError
) -> dict[str, torch.Tensor]:
    """Return the dead elements of a network that cannot be traced, seen while an image runs.

    A kernel that is also used outside of its layer is not known to be, and is left to be found so.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    dead: dict[str, torch.Tensor] = {}

    def note(module: Any, inputs: Any, result: Any) -> None:
        taps = _dead_taps(module, inputs[0].shape, result.shape)
        if taps is not None:
            name = names[id(module.weight)]
            mask = torch.zeros(module.weight.shape, dtype=torch.bool) | taps
            dead[name] = dead[name] & mask if name in dead else mask

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, _CONVOLUTIONS + _TRANSPOSED)
    ]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *spec.input_shape))
    except Exception:  # whatever a foreign forward method raises
        raise untraced from None
    finally:
        for hook in hooks:
            hook.remove()
    return dead


def _dead_taps_of_node(
    module: nn.Module, node: torch.fx.Node, traced: TracedModel
) -> torch.Tensor | None:
    source = node.args[0] if node.args else None
    if not isinstance(source, torch.fx.Node) or node.name not in traced.shapes:
        return None
    return _dead_taps(module, traced.shapes.get(source.name, ()), traced.shapes[node.name])


def _dead_taps(
    module: nn.Module, before: Sequence[int], after: Sequence[int]
) -> torch.Tensor | None:
    """Return which taps of a kernel are dead in one use; ``None`` for other layers."""
    if not isinstance(module, _CONVOLUTIONS + _TRANSPOSED) or module.padding_mode != "zeros":
        return None
    sides = len(module.kernel_size)
    size, result = tuple(before)[-sides:], tuple(after)[-sides:]
    wide, narrow = (result, size) if isinstance(module, _TRANSPOSED) else (size, result)
    padding = leading_padding(module)
    mask = torch.zeros(tuple(module.kernel_size), dtype=torch.bool)
    for side in range(sides):
        live = live_taps(
            module.kernel_size[side],
            module.stride[side],
            module.dilation[side],
            padding[side],
            wide[side],
            narrow[side],
        )
        shape = [1] * sides
        shape[side] = -1
        mask |= ~torch.tensor(live).reshape(shape)
    return mask
