"""Spread spectrum: each bit is a faint pattern over many weights, found again by correlation.

The idea of MaleficNet (Hitaj et al., ESORICS 2022; 2.0: arXiv 2403.03593), from its description.
There 4,096 bits share 24,576 weights by overlapping codes; here each bit has its own weights, which
gives the same density and the same change of the weights without interference between bits.

The receiver correlates the model as it arrives and needs nothing to subtract: the sender, who knows
the weights that he adds to (in a federation, the broadcast), makes up for them (``cancel_host``).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.carriers.base import CARRIERS, Payload, State
from fl_sim.carriers.elements import SoftCarrier, _checked, _finite, _scale
from fl_sim.carriers.placement import PlacementSettings, Places, copied, found
from fl_sim.carriers.qim import mixed
from fl_sim.randomness import derive_seed


class SpreadSpectrumSettings(PlacementSettings):
    """Settings of spread spectrum.

    Args:
        chips: weights that carry a bit together.
        amplitude: what is added to or subtracted from each of them, in deviations of a fresh weight
            of that tensor (He et al. 2015). MaleficNet's is 0.058 in all, about one deviation.
        cancel_host: whether the pattern is added only so far as a bit's weights lack it, as the
            sender knows them (improved spread spectrum, Malvar and Florencio 2003). Else the
            weights themselves are noise to the receiver, as in MaleficNet.
    """

    chips: int = Field(16, ge=1, le=1 << 20)
    amplitude: float = Field(0.2, gt=0, allow_inf_nan=False)
    cancel_host: bool = True


@CARRIERS.register("spread_spectrum", "each bit spread over many weights (after MaleficNet)")
class SpreadSpectrum(SoftCarrier[SpreadSpectrumSettings]):
    """Bit ``i`` is in the elements of ranks ``i * chips`` to ``(i + 1) * chips - 1``.

    A soft value is the mean over these of code times weight, in deviations.
    """

    Settings = SpreadSpectrumSettings

    def capacity(self, state: State) -> int:
        """Return how many bytes fit; see :class:`Carrier`."""
        return self._places(state).room // (8 * self.settings.chips)

    def write(self, state: State, payload: Payload) -> State:
        """Return a copy with the payload in it; see :class:`Carrier`."""
        content = _checked(payload, self.capacity(state))
        bits = np.unpackbits(content, bitorder="little").astype(np.float32) * 2 - 1
        result, places = copied(state), self._places(state)
        amplitude = np.full(len(bits), self.settings.amplitude)
        for copy in range(len(places.orders)):
            if self.settings.cancel_host:
                there = self._correlation(result, places, copy, len(bits), state)
                amplitude = np.maximum(0, self.settings.amplitude - bits * there)
            for name, own, ranks in places.used(copy, len(bits) * self.settings.chips):
                owner = ranks // self.settings.chips
                added = self._code(ranks) * (bits * amplitude)[owner] * _scale(state[name])
                flat, index = result[name].view(-1), torch.from_numpy(own)
                new = _finite(flat[index].float().numpy()) + added
                flat[index] = torch.from_numpy(new.astype(np.float32)).to(flat.dtype)
        return {name: result[name].to(tensor.device) for name, tensor in state.items()}

    def read_soft(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Correlate; see :class:`Carrier`."""
        expected = state if like is None else like
        held, wanted = self.extent(expected, count)
        if not held:
            return np.zeros(8 * wanted, np.float32)
        total, bits = np.zeros(8 * wanted), 8 * min(wanted, held)
        places = self._places(expected)
        for copy in range(len(places.orders)):
            total[:bits] += self._correlation(state, places, copy, bits, expected)
        return total.astype(np.float32)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements ``count`` bytes use; see :class:`Carrier`."""
        return self._places(state).masks(state, 8 * count * self.settings.chips)

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return the share of wrong bits by tensor, a bit counting where its weights are.

        See :class:`Carrier`.
        """
        places, bits = self._places(sent), 8 * length
        wrong: dict[str, list[int]] = {}
        for copy in range(len(places.orders)):
            before, after = (
                self._correlation(state, places, copy, bits, sent) > 0 for state in (sent, arrived)
            )
            for name, _, ranks in places.used(copy, bits * self.settings.chips):
                own = np.unique(ranks // self.settings.chips)
                numbers = wrong.setdefault(name, [0, 0])
                numbers[0] += int((before[own] != after[own]).sum())
                numbers[1] += len(own)
        return {name: count / size for name, (count, size) in wrong.items()}

    def _correlation(
        self,
        state: State,
        places: Places,
        copy: int,
        bits: int,
        expected: State,
    ) -> NDArray[np.float64]:
        total = np.zeros(bits)
        chips = self.settings.chips
        for name, own, ranks in places.used(copy, bits * chips):
            tensor = found(state, name, expected[name])
            if tensor is None:
                continue
            values = _finite(tensor.reshape(-1)[torch.from_numpy(own)].float().numpy())
            scaled = self._code(ranks) * values / _scale(expected[name])
            total += np.bincount(ranks // chips, scaled, minlength=bits)
        return total / chips

    def _code(self, ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return 1 or -1 for each rank, as the seed says."""
        key = np.uint64(derive_seed(self.seed, "spread spectrum"))
        bits = mixed(ranks.astype(np.uint64) ^ key) >> np.uint64(63)
        return bits.astype(np.float32) * 2 - 1
