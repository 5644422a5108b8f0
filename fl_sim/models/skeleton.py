"""A network's skeleton: names, shapes and types of its entries, without memory for its weights."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelSpec

State = dict[str, torch.Tensor]
_ALLOCATING = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


_FILLING = {
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.fill_,
    torch.Tensor.zero_,
    torch.Tensor.erfinv_,  # of a truncated normal distribution
}


class _Unfilled(TorchFunctionMode):
    """Does not fill what has no values; on the meta device it would take most of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FILLING and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class _Weightless(TorchFunctionMode):
    """Makes new tensors on the meta device, but for what a constructor computes with.

    ``torch.device("meta")`` takes all of them there, and RegNet's widths are then unknown.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _ALLOCATING and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        # What is computed of both has no values any more.
        if any(isinstance(a, torch.Tensor) and a.is_meta for a in args):
            args = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        return func(*args, **kwargs)


def skeleton(spec: ModelSpec) -> State:
    """Return a network's state dictionary on the meta device; nothing is drawn or allocated.

    Raises:
        FlSimError: if there is no such network, or it cannot have these images.
    """
    return dict(_skeleton(spec.model_dump_json()))


@lru_cache(maxsize=256)
def _skeleton(spec_json: str) -> State:
    spec = ModelSpec.model_validate_json(spec_json)
    return weightless(lambda: MODELS.get(spec.name).build(spec)).state_dict()


def weightless(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the meta device, in evaluation mode; the random generator stays.

    Args:
        build: makes the network.

    Raises:
        FlSimError: if it cannot be built so.
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        for context in (torch.device("meta"), _Weightless()):
            try:
                with context, _Unfilled():
                    network = build()
                return network.eval().to("meta")
            except (NotImplementedError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
    raise FlSimError(f"The network cannot be built without its weights: {reason}.")
