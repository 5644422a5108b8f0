"""The transposed pass of a network, derived from its traced graph.

Every operation of the forward pass gets a counterpart that maps a signal of its output's shape to
one of its input's shape with the same weights; the counterparts run in reverse order (Amit, Levy
and Mirsky, NDSS 2024, extended to any graph of the operations below). Biases are not used.

==================  ==========================================================================
forward             transposed
==================  ==========================================================================
convolution         transposed convolution to the traced input shape
linear              product with W instead of its transpose
addition            the signal goes to both inputs; where branches meet, signals are summed
concatenation       split along the same axis
pooling             nearest-neighbour upsampling to the traced input shape (or average pooling
                    where the forward pass enlarged)
mean over axes      the signal is spread over them
flatten, reshape    reshape to the traced input shape
permute, transpose  the inverse permutation
chunk, split        the signal goes to the part that it came from, zeros to the others
normalisation       normalisation over channels and pixels without parameters
ReLU and relatives  the same activation
gate (product)      the signal goes to the main branch, the gate is left out
dropout, identity   identity
==================  ==========================================================================
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fl_sim.errors import FlSimError
from fl_sim.models.graph import NORMALIZATIONS, trace
from fl_sim.models.reachable import Convolution

Signal = torch.Tensor
Shape = tuple[int, ...]
Rule = Callable[[Signal], Signal]
Step = tuple[list[fx.Node], Callable[[Signal], tuple[Signal, ...]]]

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Hardswish,
    nn.Tanh,
    nn.PReLU,
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardsigmoid,
)
ACTIVATION_FUNCTIONS = {
    torch.relu,
    functional.relu,
    functional.gelu,
    functional.silu,
    functional.elu,
    functional.leaky_relu,
    functional.hardswish,
    torch.tanh,
    functional.relu6,
    functional.tanh,
    functional.selu,
    functional.mish,
    functional.softplus,
    torch.sigmoid,
    functional.sigmoid,
}
ACTIVATION_METHODS = {
    "relu": torch.relu,
    "relu_": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = {
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
    torch.max_pool2d,
}
PASS_MODULES = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity)
PASS_FUNCTIONS = {functional.dropout, functional.dropout2d}
NORMALIZING_FUNCTIONS = {functional.layer_norm, functional.group_norm, functional.batch_norm}
RESHAPE_FUNCTIONS = {torch.flatten, torch.reshape}
RESHAPE_METHODS = {"flatten", "reshape", "view", "contiguous", "squeeze", "unsqueeze", "unflatten"}
PIECES = {"chunk", "split", torch.chunk, torch.split}
SUM_FUNCTIONS = {operator.add, operator.iadd, torch.add}
GATE_FUNCTIONS = {operator.mul, operator.imul, torch.mul}


class TransposedPass:
    """Runs a network backwards, from a code of the output's shape to an image.

    The pass uses the network's own weight tensors, so a loss on its output trains them.

    Args:
        model: the network; any that consists of the operations in this module's table.
        input_shape: channels, height and width of one image.
        detach_convolutions: leave the convolutions' weights out of the gradient, as the released
            code of the paper does.

    Raises:
        FlSimError: if the network has an operation without a transposed counterpart.
    """

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, int, int], detach_convolutions: bool = False
    ) -> None:
        self.traced = trace(model, input_shape)
        self.detach_convolutions = detach_convolutions
        nodes = self.traced.nodes
        self._output = _source(nodes[-1])
        self._input = nodes[0]
        self._on_path = _ancestors(self._output)
        if self._input not in self._on_path:
            raise FlSimError("The network's output does not depend on its input.")
        self._steps = self._derive(nodes)

    def __call__(self, codes: Signal) -> Signal:
        """Map codes ``[n, outputs]`` to images ``[n, channels, height, width]``, unclamped."""
        signals: dict[fx.Node, Signal] = {self._output: codes}
        for node, (inputs, rule) in self._steps:
            results = rule(signals.pop(node))
            for source, result in zip(inputs, results, strict=True):
                known = signals.get(source)
                signals[source] = result if known is None else known + result
        return signals[self._input]

    def _derive(self, nodes: list[fx.Node]) -> list[tuple[fx.Node, Step]]:
        """Find a rule for every node that the signal reaches; gates are never reached."""
        reached, steps = {self._output}, []
        for node in reversed(nodes):
            if node in reached and node is not self._input:
                step = self._inputs_and_rule(node)
                reached.update(step[0])
                steps.append((node, step))
        return steps

    def _inputs_and_rule(self, node: fx.Node) -> Step:
        inputs = [n for n in node.all_input_nodes if self._takes_signal(n)]
        function = node.target if node.op == "call_function" else None
        if function in SUM_FUNCTIONS:
            return inputs, lambda signal: (signal,) * len(inputs)
        if function is torch.cat:
            return self._split(node)
        if function is operator.getitem and _is_piece(node.args[0]):
            return self._whole(node)
        if function in GATE_FUNCTIONS:
            main = max(inputs, key=lambda n: math.prod(self._shape(n)))
            return [main], lambda signal: (signal,)
        rule = self._unary_rule(node, inputs)
        return inputs, lambda signal: (rule(signal),)

    def _takes_signal(self, node: fx.Node) -> bool:
        """Whether a node is a tensor that comes from the image; parameters and sizes do not."""
        return node in self._on_path and node.op != "get_attr" and node.name in self._shapes

    def _unary_rule(self, node: fx.Node, inputs: list[fx.Node]) -> Rule:
        shape = self._shape(inputs[0]) if len(inputs) == 1 else None
        rule: Rule | None = None
        if shape is not None and node.op == "call_module":
            rule = self._module_rule(self.traced.module(node), node, shape)
        elif shape is not None and node.op == "call_function":
            rule = _function_rule(node.target, node, shape)
        elif shape is not None and node.op == "call_method":
            rule = _method_rule(str(node.target), node, shape)
        if rule is None:
            raise FlSimError(
                f"The network cannot be run backwards: its operation '{node.name}' "
                f"({_words(node)}) has no transposed counterpart. What hides images in the weights "
                f"themselves (the attacks dec, correlated and sign_encoding) does not need one."
            )
        return rule

    def _module_rule(self, module: nn.Module, node: fx.Node, shape: Shape) -> Rule | None:
        if isinstance(module, nn.Conv2d):
            return self._convolution(module, shape)
        if isinstance(module, nn.Linear):
            return lambda signal: signal @ module.weight
        if isinstance(module, NORMALIZATIONS):
            return normalize
        if isinstance(module, ACTIVATIONS):
            return lambda signal: _activate(module, signal)
        if isinstance(module, POOLS):
            return _resize_to(shape)
        if isinstance(module, nn.Flatten):
            return _reshape_to(shape)
        if isinstance(module, PASS_MODULES) or type(module).__name__ == "StochasticDepth":
            return lambda signal: signal
        return None

    def _convolution(self, module: nn.Conv2d, inside: Shape) -> Rule:
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise FlSimError(
                "Only convolutions with zero padding given in numbers can be run back."
            )
        convolution, (height, width) = Convolution.of(module), inside[2:]

        def rule(signal: Signal) -> Signal:
            weight = module.weight.detach() if self.detach_convolutions else module.weight
            return convolution.transposed(signal, weight, (height, width))

        return rule

    def _split(self, node: fx.Node) -> Step:
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        axis = int(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0))  # type: ignore[arg-type]
        sizes = [self._shape(part)[axis] for part in parts]
        return parts, lambda signal: torch.split(signal, sizes, dim=axis)

    def _whole(self, node: fx.Node) -> Step:
        """Return the step from a piece of a tensor to the tensor."""
        pieces, number = node.args
        source: fx.Node = pieces.args[0]  # type: ignore[union-attr, assignment]
        shape, own = self._shape(source), self._shape(node)
        axis = next((d for d in range(len(own)) if own[d] != shape[d]), 1)
        first = int(number) * own[axis]  # type: ignore[arg-type]
        if first + own[axis] > shape[axis]:  # a last piece that is shorter
            first = shape[axis] - own[axis]
        after = shape[axis] - first - own[axis]
        room = [0, 0] * (len(shape) - axis - 1) + [first, after]
        return [source], lambda signal: (functional.pad(signal, room),)

    @property
    def _shapes(self) -> dict[str, Shape]:
        return self.traced.shapes

    def _shape(self, node: fx.Node) -> Shape:
        return self._shapes[node.name]


def normalize(signal: Signal, epsilon: float = 1e-5) -> Signal:
    """Normalise each sample over all its channels and pixels; no parameters."""
    return functional.layer_norm(signal, signal.shape[1:], eps=epsilon)


def _function_rule(function: Any, node: fx.Node, shape: Shape) -> Rule | None:
    if function in ACTIVATION_FUNCTIONS:
        return lambda signal: _activate(function, signal)
    if function in POOL_FUNCTIONS or getattr(function, "__name__", "").startswith("max_pool2d"):
        return _resize_to(shape)
    if function in RESHAPE_FUNCTIONS:
        return _reshape_to(shape)
    if function in NORMALIZING_FUNCTIONS:
        return normalize
    if function is torch.mean:
        return _spread_over(_dimensions(node), shape)
    if function in (torch.permute, torch.transpose, torch.swapaxes):
        return _permuted_back(node, shape)
    if function in PASS_FUNCTIONS or getattr(function, "__name__", "") == "stochastic_depth":
        return lambda signal: signal
    return None


def _method_rule(method: str, node: fx.Node, shape: Shape) -> Rule | None:
    if method in RESHAPE_METHODS:
        return _reshape_to(shape)
    if method in ACTIVATION_METHODS:
        return lambda signal: _activate(ACTIVATION_METHODS[method], signal)
    if method == "mean":
        return _spread_over(_dimensions(node), shape)
    if method in ("permute", "transpose", "swapaxes"):
        return _permuted_back(node, shape)
    return None


def _dimensions(node: fx.Node) -> tuple[int, ...] | None:
    """Return the axes that a call names behind its tensor; ``None`` for none."""
    named: Any = node.kwargs.get("dim", node.kwargs.get("dims"))
    if named is None:
        named = node.args[1:]
        if len(named) == 1 and isinstance(named[0], list | tuple):
            named = named[0]
    axes = tuple(named) if isinstance(named, list | tuple) else (named,)
    whole = all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes)
    return axes if axes and whole else None


def _spread_over(axes: tuple[int, ...] | None, shape: Shape) -> Rule | None:
    if axes is None:
        return None
    kept = [1 if d in {a % len(shape) for a in axes} else side for d, side in enumerate(shape)]
    return lambda signal: signal.reshape(-1, *kept[1:]).expand(-1, *shape[1:])


def _permuted_back(node: fx.Node, shape: Shape) -> Rule | None:
    axes = _dimensions(node)
    if axes is None:
        return None
    order = [axis % len(shape) for axis in axes]
    if node.target in ("transpose", "swapaxes", torch.transpose, torch.swapaxes):
        return lambda signal: signal.transpose(*order)
    back = sorted(range(len(order)), key=order.__getitem__)
    return lambda signal: signal.permute(*back)


def _is_piece(node: Any) -> bool:
    """Whether a node's result is a tuple of pieces of equal size."""
    if not isinstance(node, fx.Node) or node.target not in PIECES:
        return False
    wanted = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks")
    return isinstance(wanted, int) or isinstance(node.kwargs.get("split_size_or_sections"), int)


def _words(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _activate(activation: Any, signal: Signal) -> Signal:
    if activation in (torch.relu, functional.relu) or isinstance(activation, nn.ReLU):
        return functional.relu(signal)  # never in place: a signal may have two readers
    if isinstance(activation, nn.Module) and getattr(activation, "inplace", False):
        return activation(signal.clone())
    return activation(signal)


def _reshape_to(shape: Shape) -> Rule:
    return lambda signal: signal.reshape(signal.shape[0], *shape[1:])


def _resize_to(shape: Shape) -> Rule:
    height, width = shape[2:]

    def rule(signal: Signal) -> Signal:
        if signal.shape[2] > height or signal.shape[3] > width:
            return functional.adaptive_avg_pool2d(signal, (height, width))
        if signal.shape[2:] == (height, width):
            return signal
        if signal.shape[2:] == (1, 1):
            return signal.expand(-1, -1, height, width)
        return functional.interpolate(signal, size=(height, width), mode="nearest")

    return rule


def _source(output: fx.Node) -> fx.Node:
    value = output.args[0]
    if not isinstance(value, fx.Node):
        raise FlSimError("Only networks with a single output tensor can be run backwards.")
    return value


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                todo.append(source)
    return found
