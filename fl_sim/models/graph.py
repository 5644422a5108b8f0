"""A network's traced graph: what runs in which order, with shapes, and which parameters it uses."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from fl_sim.errors import FlSimError
from fl_sim.models.depth import depths

Grouping = Literal["tensor", "module", "block", "depth"]
NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
# Parameters of these belong to the weight layer before them.
FOLLOWERS = (*NORMALIZATIONS, nn.PReLU)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """A group of parameters that one rule treats alike.

    Args:
        name: of the tensor, module or block.
        parameters: names in the state dictionary, in forward order.
        used: whether the network's output depends on any of them.
    """

    name: str
    parameters: tuple[str, ...]
    used: bool = True


@dataclass(frozen=True)
class TracedModel:
    """A network's graph in forward order.

    Args:
        graph_module: the traced network; shares its parameters with the network.
        shapes: output shape of each node, for a batch of one, where it is a tensor.
    """

    graph_module: fx.GraphModule
    shapes: dict[str, tuple[int, ...]]

    @property
    def nodes(self) -> list[fx.Node]:
        """The graph's nodes in forward order."""
        return list(self.graph_module.graph.nodes)

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a ``call_module`` node calls."""
        return self.graph_module.get_submodule(str(node.target))


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> TracedModel:
    """Trace a network and note the shape of everything in it.

    Args:
        model: any network that ``torch.fx`` can trace.
        input_shape: channels, height and width of one image.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    was_training = model.training
    model.eval()
    try:
        traced = fx.symbolic_trace(model)
        parameter = next(model.parameters())
        example = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            recorder = _ShapeRecorder(traced)
            recorder.run(example)
    except Exception as error:  # whatever a foreign forward method raises under tracing
        raise FlSimError(
            f"The network {type(model).__name__} cannot be traced for images of shape "
            f"{input_shape}: {error}. Write its forward without branches on tensor values."
        ) from error
    finally:
        model.train(was_training)
    return TracedModel(traced, recorder.shapes)


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes each node's output shape; torch's own prints tracebacks."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


def layers(
    model: nn.Module, input_shape: tuple[int, int, int], by: Grouping = "block"
) -> list[Layer]:
    """Return a network's parameters in forward order, grouped.

    The order is that of the traced graph, not of registration, so a module that is defined first
    and used last comes last. Parameters that no node uses come at the end.

    Args:
        model: the network.
        input_shape: channels, height and width of one image.
        by: ``"tensor"`` (every parameter is a layer), ``"module"`` (a module's weight and bias are
            one layer), ``"block"`` (a residual block, dense layer or encoder block is one layer;
            outside of those a convolution or linear layer together with its normalisation and
            activation) or ``"depth"`` (weights at the same distance from the input, by the longest
            path, are one layer, with their normalisations; a whole dense block counts as one).

    Raises:
        FlSimError: if the network cannot be traced.
    """
    traced = trace(model, input_shape)
    owners, used = _parameters_by_owner(model, traced)
    groups: list[tuple[str, tuple[str, ...]]]
    if by == "tensor":
        groups = [(name, (name,)) for names in owners.values() for name in names]
    elif by == "module":
        groups = list(owners.items())
    elif by == "depth":
        groups = _levels(traced, owners)
    else:
        groups = _blocks(model, owners)
    return [Layer(name, members, not used.isdisjoint(members)) for name, members in groups]


def absorbed_biases(model: nn.Module, input_shape: tuple[int, int, int]) -> list[str]:
    """Return the biases that a batch normalisation right behind them takes away again.

    Training gives these no gradient but rounding's, and with the normalisation's statistics taken
    anew their values change no output.

    Args:
        model: the network.
        input_shape: channels, height and width of one image.

    Raises:
        FlSimError: if the network cannot be traced.
    """
    traced = trace(model, input_shape)
    found = []
    for node in traced.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        followed = user.op == "call_module" and isinstance(
            traced.module(user), nn.modules.batchnorm._BatchNorm
        )
        bias = getattr(traced.module(node), "bias", None)
        weighted = isinstance(traced.module(node), (nn.Linear, nn.modules.conv._ConvNd))
        if followed and weighted and bias is not None:
            found.append(f"{node.target}.bias")
    return found


def _parameters_by_owner(
    model: nn.Module, traced: TracedModel
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Map each module that owns parameters, in forward order, to their names; and those used."""
    known = dict(model.named_parameters())
    ordered: dict[str, list[str]] = {}
    seen: set[str] = set()

    def take(owner: str, names: list[str]) -> None:
        for name in names:
            if name in known and name not in seen:
                seen.add(name)
                ordered.setdefault(owner, []).append(name)

    for node in traced.nodes:
        target = str(node.target)
        if node.op == "call_module":
            inside = [f"{target}.{name}" for name, _ in traced.module(node).named_parameters()]
            take(target, inside)
        elif node.op == "get_attr":
            take(target, [target])
    used = set(seen)
    for name in known:
        take(name.rpartition(".")[0] or name, [name])
    return {owner: tuple(names) for owner, names in ordered.items()}, used


def _blocks(
    model: nn.Module, owners: dict[str, tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...]]]:
    modules = dict(model.named_modules())
    composite = _innermost_composites(modules)
    groups: list[tuple[str, list[str], bool]] = []  # name, parameters, still lacks a weight layer
    index: dict[str, int] = {}
    for owner, names in owners.items():
        block = next((c for c in composite if f"{owner}.".startswith(c + ".")), None)
        if block is not None:
            if block not in index:
                index[block] = len(groups)
                groups.append((block, [], False))
            groups[index[block]][1].extend(names)
            continue
        follows = isinstance(modules.get(owner), FOLLOWERS)
        loose = bool(groups) and groups[-1][0] not in index
        if loose and (follows or groups[-1][2]):
            name, members, lacking = groups[-1]
            groups[-1] = (name, members + list(names), lacking and follows)
        else:
            groups.append((owner, list(names), follows))
    return [(name, tuple(members)) for name, members, _ in groups]


def _levels(
    traced: TracedModel, owners: dict[str, tuple[str, ...]]
) -> list[tuple[str, tuple[str, ...]]]:
    """Group parameters by how deep the node that uses them lies; unused ones by their owner."""

    def counts(node: fx.Node) -> bool:
        if node.op != "call_module" or str(node.target) not in owners:
            return False
        return not isinstance(traced.module(node), FOLLOWERS)

    depth: dict[str, int] = {}
    for node, level in depths(traced.nodes, counts).items():
        # A normalisation, or a parameter by itself, at the very input belongs to what comes next.
        depth.setdefault(str(node.target), max(level, 1))
    levels: dict[int, list[str]] = {}
    unused = []
    for owner, names in owners.items():
        if owner in depth:
            levels.setdefault(depth[owner], []).extend(names)
        else:
            unused.append((owner, names))
    return [(f"depth {level}", tuple(levels[level])) for level in sorted(levels)] + unused


def _innermost_composites(modules: dict[str, nn.Module]) -> list[str]:
    """Names of modules that are more than a container and hold no other such module."""
    composites = [
        name
        for name, module in modules.items()
        if name
        and not isinstance(module, CONTAINERS)
        and not type(module).__module__.startswith("torch.nn")
        and any(True for _ in module.children())
    ]
    return [c for c in composites if not any(o.startswith(c + ".") for o in composites)]
