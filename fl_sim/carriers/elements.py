"""What carriers share that put bits into single weights: places, copies, soft values."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.carriers.base import Carrier, Payload, State
from fl_sim.carriers.placement import PlacementSettings, Places, copied, find_places, found
from fl_sim.carriers.weights import fresh_deviation, weight_tensors
from fl_sim.errors import FlSimError

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]
ElementSettingsT = TypeVar("ElementSettingsT", bound=PlacementSettings)


class SoftCarrier(Carrier[ElementSettingsT]):
    """What carriers in single weights share: their places, and bits that are soft values' signs."""

    def read(self, state: State, count: int | None = None, like: State | None = None) -> Bytes:
        """Read bytes; zeros where nothing can be read. See :class:`Carrier`."""
        return np.packbits(self.read_soft(state, count, like) > 0, bitorder="little")

    def _places(self, state: State) -> Places:
        names = weight_tensors(state, self.settings.tensors, self.settings.exclude)
        return find_places(state, names, self.settings, self.seed, self.spec)


class ElementCarrier(SoftCarrier[ElementSettingsT]):
    """Bytes in single elements of tensors of two or more dimensions.

    Bit ``i`` of the payload (the lowest of a byte first) is in the element of rank
    ``i // per_element``. A subclass says how an element carries its bits. Values pass through
    float32, whatever the tensor's dtype.
    """

    @property
    def per_element(self) -> int:
        """Bits in an element."""
        return 1

    @property
    def planes(self) -> Sequence[int]:
        """Which bits of a number's mantissa carry, the lowest first; none if it is not these."""
        return ()

    @abstractmethod
    def modulate(
        self, values: Values, bits: NDArray[np.uint8], scale: float, ranks: NDArray[np.int64]
    ) -> Values:
        """Return values that carry bits.

        Args:
            values: of the elements, ``[n]``.
            bits: 0 or 1, ``[n, per_element]``; the lowest first.
            scale: of the tensor: the deviation that weights of this shape start with.
            ranks: of the elements, ``[n]``.
        """

    @abstractmethod
    def demodulate(self, values: Values, scale: float, ranks: NDArray[np.int64]) -> Values:
        """Return soft values ``[n, per_element]``, positive for 1; see :meth:`modulate`."""

    def capacity(self, state: State) -> int:
        """Return how many bytes fit; see :class:`Carrier`."""
        return self._places(state).room * self.per_element // 8

    def write(self, state: State, payload: Payload) -> State:
        """Return a copy with the payload in it; see :class:`Carrier`."""
        content = _checked(payload, self.capacity(state))
        elements = -(-8 * len(content) // self.per_element)
        bits = np.zeros(elements * self.per_element, np.uint8)
        bits[: 8 * len(content)] = np.unpackbits(content, bitorder="little")
        by_rank = bits.reshape(elements, self.per_element)
        result, places = copied(state), self._places(state)
        for copy in range(len(places.orders)):
            for name, own, ranks in places.used(copy, elements):
                flat, index = result[name].view(-1), torch.from_numpy(own)
                values = _finite(flat[index].float().numpy())
                new = self.modulate(values, by_rank[ranks], _scale(state[name]), ranks)
                flat[index] = torch.from_numpy(new.astype(np.float32)).to(flat.dtype)
        return {name: result[name].to(tensor.device) for name, tensor in state.items()}

    def read_soft(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Return the sum of all copies' soft values; see :class:`Carrier`."""
        expected = state if like is None else like
        held, wanted = self.extent(expected, count)
        if not held:
            return np.zeros(8 * wanted, np.float32)
        elements = -(-8 * min(wanted, held) // self.per_element)
        total = np.zeros((max(elements, -(-8 * wanted // self.per_element)), self.per_element))
        places = self._places(expected)
        for copy in range(len(places.orders)):
            for name, own, ranks in places.used(copy, elements):
                tensor = found(state, name, expected[name])
                if tensor is not None:
                    values = _finite(tensor.reshape(-1)[torch.from_numpy(own)].float().numpy())
                    total[ranks] += self.demodulate(values, _scale(tensor), ranks)
        return total.reshape(-1)[: 8 * wanted].astype(np.float32)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements ``count`` bytes use; see :class:`Carrier`."""
        return self._places(state).masks(state, -(-8 * count // self.per_element))

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return the share of wrong bits by tensor; see :class:`Carrier`."""
        return {
            name: float(wrong.sum() / (elements * len(wrong)))
            for name, (wrong, elements) in self._wrong(sent, arrived, length).items()
        }

    def plane_errors(self, sent: State, arrived: State, length: int) -> dict[str, dict[int, float]]:
        """Return the share of wrong bits by tensor and bit; see :class:`Carrier`."""
        planes = self.planes
        return {
            name: {bit: float(wrong[i] / elements) for i, bit in enumerate(planes)}
            for name, (wrong, elements) in self._wrong(sent, arrived, length).items()
            if planes
        }

    def _wrong(
        self, sent: State, arrived: State, length: int
    ) -> dict[str, tuple[NDArray[np.int64], int]]:
        """Return by tensor how often each bit of an element is wrong, and of how many elements."""
        elements, places = -(-8 * length // self.per_element), self._places(sent)
        wrong: dict[str, tuple[NDArray[np.int64], int]] = {}
        for copy in range(len(places.orders)):
            for name, own, ranks in places.used(copy, elements):
                index, scale = torch.from_numpy(own), _scale(sent[name])
                tensor = found(arrived, name, sent[name])
                if tensor is None:
                    tensor = torch.zeros(sent[name].shape)
                before, after = (
                    self.demodulate(
                        _finite(t.detach().cpu().reshape(-1)[index].float().numpy()), scale, ranks
                    )
                    > 0
                    for t in (sent[name], tensor)
                )
                known, size = wrong.get(name, (np.zeros(self.per_element, np.int64), 0))
                wrong[name] = known + (before != after).sum(axis=0), size + len(before)
        return wrong


def _checked(payload: Payload, capacity: int) -> Bytes:
    if payload.dtype != np.uint8:
        raise FlSimError("This carrier carries bytes, not values; give it uint8.")
    content = np.ascontiguousarray(payload.ravel(), np.uint8)
    if len(content) > capacity:
        raise FlSimError(
            f"A payload of {len(content)} bytes does not fit: the chosen weights hold {capacity} "
            f"bytes; hide fewer images, choose more tensors or fewer copies."
        )
    return content


def _finite(values: Values) -> Values:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _scale(tensor: torch.Tensor) -> float:
    return fresh_deviation(tensor.shape)
