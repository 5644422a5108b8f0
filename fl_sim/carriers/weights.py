"""Values in place of weights: latents that stand the noise which no entropy code survives.

Li, Ayache and Delingette (MELBA 2025:032, "storing y instead of Z") hide the decoded latents of the
codec, since small changes of the weights then make small errors in the images. Replacing trained
weights costs utility; ``frozen`` puts the same values in before training instead.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import CARRIERS, Carrier, Payload, State, relative_error
from fl_sim.carriers.placement import Part, Ranked, choose, copied, found, in_one_order, natural
from fl_sim.errors import FlSimError
from fl_sim.settings import Settings

Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["match"]


class WeightsSettings(Settings):
    """Settings of carriers that put values in place of weights.

    Args:
        tensors: patterns (``*``, ``?``, ``[...]``) of the names of tensors that may carry; only
            floating-point tensors of two or more dimensions ever do. By default the carrier's
            choice.
        exclude: patterns of names that may not.
        scale: what a value is multiplied by, so the deviation of the weights if values have unit
            deviation; ``"match"`` takes that of a fresh tensor of the same shape,
            ``sqrt(2 / fan_in)`` (He et al. 2015), which the receiver can compute.
        order: ``"keyed"`` by the carrier's seed, or ``"sequential"``.
        copies: how often the values are written, in different places; what is read is their mean.
        part: see :class:`~fl_sim.carriers.placement.PlacementSettings`.
    """

    tensors: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    scale: Scale = "match"
    order: Literal["keyed", "sequential"] = "keyed"
    copies: int = Field(1, ge=1, le=64)
    part: Part = (0, 1)


ReplacedSettingsT = TypeVar("ReplacedSettingsT", bound=WeightsSettings)


class ReplacedWeights(Carrier[ReplacedSettingsT]):
    """What the carriers of values in weights share; a subclass says which weights, in which order.

    Weights become ``scale * value``, in the tensor's dtype. Values are expected to have zero mean
    and unit deviation; the caller normalises them and tells the receiver how.
    """

    carries = ("values",)

    @abstractmethod
    def names(self, state: State) -> list[str]:
        """Return the tensors that carry, in the order in which they are used.

        Raises:
            FlSimError: if there are none.
        """

    @abstractmethod
    def ranked(self, state: State, count: int) -> Ranked:
        """Rank the elements of these tensors, at least until ``count`` are ranked."""

    def capacity(self, state: State) -> int:
        """Return how many values fit; see :class:`Carrier`."""
        return sum(state[name].numel() for name in self.names(state)) // self._slots

    def write(self, state: State, payload: Payload) -> State:
        """Return a copy with the values in it; see :class:`Carrier`.

        Raises:
            FlSimError: if they do not fit, or are no finite floats.
        """
        values = finite_values(payload, type(self).__name__)
        capacity = self.capacity(state)
        if len(values) > capacity:
            raise FlSimError(
                f"{len(values)} values do not fit in the {capacity} weights of "
                f"{', '.join(self.names(state)[:3])}; hide fewer images or choose more tensors."
            )
        result = copied(state)
        for name, used, index in self._used(state, len(values)):
            weights = torch.from_numpy(values[index] * self._scale(state[name]))
            flat = result[name].view(-1)
            flat[torch.from_numpy(used)] = weights.to(flat.dtype)
        return {name: result[name].to(tensor.device) for name, tensor in state.items()}

    def read(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Read values; not-a-number where nothing can be read. See :class:`Carrier`."""
        expected = state if like is None else like
        held, wanted = self.extent(expected, count)
        if not held:
            return np.full(wanted, np.nan, np.float32)
        total, copies = np.zeros(wanted), np.zeros(wanted)
        for name, used, index in self._used(expected, wanted):
            tensor = found(state, name, expected[name])
            if tensor is not None:
                read = tensor.float().reshape(-1).numpy()[used] / self._scale(tensor)
                whole = np.isfinite(read)
                total += np.bincount(index[whole], read[whole], minlength=wanted)
                copies += np.bincount(index[whole], minlength=wanted)
        mean = np.divide(total, copies, out=np.full(wanted, np.nan), where=copies > 0)
        return mean.astype(np.float32)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements ``count`` values replace; see :class:`Carrier`."""
        return {
            name: torch.from_numpy(used).reshape(state[name].shape)
            for name, used, _ in self._used(state, count)
        }

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return the relative error by tensor; see :class:`Carrier`."""
        result = {}
        for name, mask in self.places(sent, length).items():
            tensor = found(arrived, name, sent[name])
            before = sent[name].detach().cpu().float()[mask]
            after = torch.zeros_like(before) if tensor is None else tensor.float()[mask]
            result[name] = relative_error(before.numpy(), after.numpy())
        return result

    @property
    def _slots(self) -> int:
        """Elements to each value: the copies in this part, and in all others."""
        return self.settings.copies * self.settings.part[1]

    def _used(
        self, state: State, count: int
    ) -> Iterator[tuple[str, NDArray[np.bool_], NDArray[np.int64]]]:
        """Return which elements of each tensor carry ``count`` values, and which value each."""
        first = self.settings.part[0] * self.settings.copies
        for name, ranks in self.ranked(state, count * self._slots):
            index, slot = np.divmod(ranks, self._slots)
            used = (index < count) & (slot >= first) & (slot < first + self.settings.copies)
            if used.any():
                yield name, used, index[used]

    def _key(self) -> int | None:
        return self.seed if self.settings.order == "keyed" else None

    def _scale(self, tensor: torch.Tensor) -> np.float32:
        scale = self.settings.scale
        return np.float32(fresh_deviation(tensor.shape) if scale == "match" else scale)


@CARRIERS.register("weights", "values in place of trained weights")
class Weights(ReplacedWeights[WeightsSettings]):
    """Values in place of trained weights, over all chosen tensors in one order.

    By default in the largest convolution, the last of equal ones (the largest matrix of a network
    without convolutions, but never its last). In residual networks that is a convolution of the
    last stage, which a skip connection passes by, so that it costs least to lose.
    """

    Settings = WeightsSettings

    def names(self, state: State) -> list[str]:
        """Return the tensors that carry; see :class:`ReplacedWeights`."""
        if self.settings.tensors is not None:
            return weight_tensors(state, self.settings.tensors, self.settings.exclude)
        names = weight_tensors(state, ("*",), self.settings.exclude)
        kernels = [name for name in names if state[name].dim() > 2]
        return [max(kernels or names[:-1] or names, key=lambda n: (state[n].numel(), natural(n)))]

    def ranked(self, state: State, count: int) -> Ranked:
        """Rank the elements of all tensors together."""
        return in_one_order(state, self.names(state), self._key())


def weight_tensors(state: State, tensors: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Return the chosen tensors of two or more dimensions, roughly in forward order.

    Convolutions (three dimensions or more) before matrices, each by name in natural order: what can
    be told from names and shapes alone, and puts the classifier last.

    Raises:
        FlSimError: if there are none.
    """
    weights = {name: tensor for name, tensor in state.items() if tensor.dim() >= 2}
    names = choose(weights, tensors, exclude)
    return sorted(names, key=lambda name: (state[name].dim() == 2, natural(name)))


def fresh_deviation(shape: Sequence[int]) -> float:
    """Return the deviation of a freshly initialised weight, ``sqrt(2 / fan_in)`` (He et al. 2015).

    Args:
        shape: outputs, inputs, and the kernel's sides where there are any.
    """
    return math.sqrt(2 / math.prod(shape[1:]))


def finite_values(payload: Payload, carrier: str) -> NDArray[np.float32]:
    """Return a payload as flat float32 values.

    Raises:
        FlSimError: if it is bytes, or a value is not finite.
    """
    if payload.dtype != np.float32:
        raise FlSimError(f"The carrier '{carrier.lower()}' carries float32 values here, not bytes.")
    values = np.ascontiguousarray(payload.ravel(), np.float32)
    if not np.isfinite(values).all():
        raise FlSimError("A value to be hidden is not finite; the codec's latents are broken.")
    return values
