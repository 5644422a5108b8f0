"""What a file claims of a network, held against the file itself before anything is built.

A header of a hundred bytes may describe a network of terabytes. Nothing is built that has more
than twice the elements of the file's own tensors.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fl_sim.errors import FlSimError, printable, shown
from fl_sim.models.base import ModelSpec

LARGEST_SIDE = 1024
"""Side of the largest images, in pixels, as for a dataset's ``size``."""

_SLACK = 1 << 16
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


def build_claimed(spec: ModelSpec, state: Mapping[str, torch.Tensor], where: str) -> nn.Module:
    """Build the network that a file states, unless the file has not the tensors for it.

    Args:
        spec: as the file states it.
        state: the file's tensors by name.
        where: what the file is, for messages, for example ``"The model file"``.

    Returns:
        The network with initial weights; whether the tensors fit it by name is not checked.

    Raises:
        FlSimError: if there is no such network, or it has far more elements than the file.
    """
    from fl_sim.models import build

    if not 1 <= spec.size <= LARGEST_SIDE or spec.classes < 1:
        raise FlSimError(
            f"{where} states a network for images of {shown(spec.size)} pixels and "
            f"{shown(spec.classes)} outputs, which there is not: sides end at {LARGEST_SIDE}."
        )
    elements = sum(tensor.numel() for tensor in state.values())
    try:
        with building_within(2 * elements + _SLACK):
            return build(spec)
    except TooManyElements:
        raise FlSimError(
            f"{where}'s weights do not fit the model '{printable(spec.name)}' that its header "
            f"states, which has far more elements than the {elements} of the file."
        ) from None
    except FlSimError:
        raise
    except Exception as error:  # whatever a constructor makes of impossible numbers
        said = printable(str(error).partition("\n")[0])[:120]
        raise FlSimError(
            f"{where} states a network '{printable(spec.name)}' that cannot be built: {said}."
        ) from None


class TooManyElements(Exception):
    """A network under construction has more elements than it may have."""


@contextmanager
def building_within(elements: int) -> Iterator[None]:
    """Allow modules that are built within the block only so many elements together.

    Raises:
        TooManyElements: before the tensor that would be too much is allocated.
    """
    with _Budget(elements):
        yield


class _Budget(TorchFunctionMode):
    """Counts what torch's factories are asked for; layers take their parameters from these."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self._left = elements

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self._left -= _asked_for(args, kwargs.get("size"))
            if self._left < 0:
                raise TooManyElements
        return func(*args, **kwargs)


def _asked_for(args: tuple[Any, ...], size: Any) -> int:
    sides = size if size is not None else args
    if len(sides) == 1 and not isinstance(sides[0], int):
        sides = sides[0]
    return math.prod(max(0, int(side)) for side in sides)
