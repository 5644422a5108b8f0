"""What a carrier is: where in a model file a payload travels.

A carrier writes into a state dictionary and reads from one; it sees no images and no codec. Writing
and reading agree on everything by the carrier's settings and its seed, which are in the key.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.registry import Registry
from fl_sim.settings import Settings

State = dict[str, torch.Tensor]
Payload = NDArray[np.uint8] | NDArray[np.float32]
"""What travels, one-dimensional: bytes, or the float values of noise-resistant latents."""

CarrierSettingsT = TypeVar("CarrierSettingsT", bound=Settings)


class Carrier(ABC, Generic[CarrierSettingsT]):
    """A carrier. Subclass, set ``Settings`` and ``carries``, and register with ``CARRIERS``.

    Args:
        settings: see the subclass.
        seed: secret of sender and receiver; the order of places follows from it.
        spec: the network, which both know, for places that follow from its architecture.
    """

    Settings: ClassVar[type[Settings]] = Settings
    carries: ClassVar[tuple[Literal["bytes", "values"], ...]] = ("bytes",)
    """What it can carry: ``"bytes"`` (uint8), ``"values"`` (float32), or either."""
    frozen: ClassVar[bool] = False
    """Whether it is written before training, and its places are kept fixed during it."""

    def __init__(
        self, settings: CarrierSettingsT, seed: int, spec: ModelSpec | None = None
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.spec = spec

    @abstractmethod
    def capacity(self, state: State) -> int | None:
        """Return how many bytes or values the state can carry; ``None`` where there is no limit.

        Only names, shapes and dtypes count, never values: sender and receiver must agree.

        Raises:
            FlSimError: if the settings choose no tensor of this state.
        """

    def extent(self, expected: State, count: int | None) -> tuple[int, int]:
        """Return how much a state can hold, and how much is wanted of it, for a reader.

        Args:
            expected: the state that was written to, by names, shapes and dtypes.
            count: how much was asked for; all that it can hold where not given.

        Returns:
            ``0`` and ``count``, where nothing is left of what was written to.
        """
        try:
            held = self.capacity(expected) or 0
        except FlSimError:
            held = 0
        return held, held if count is None else count

    @abstractmethod
    def write(self, state: State, payload: Payload) -> State:
        """Return a new state dictionary with the payload in it; the given one is not changed.

        Raises:
            FlSimError: if the payload does not fit.
        """

    @abstractmethod
    def read(self, state: State, count: int | None = None, like: State | None = None) -> Payload:
        """Read from a state dictionary, however it was changed since.

        Args:
            state: as it arrived. Missing or reshaped tensors are no error: what cannot be read is
                zero (bytes) or not a number (values).
            count: bytes or values to read; by default all that the carrier's places hold.
            like: the network's own state dictionary as the receiver can rebuild it from the
                architecture (only names, shapes and dtypes count; it may be on the meta device).
                Without it the places follow from ``state`` itself, so a tensor that is missing or
                has another shape displaces everything, instead of losing only its own part.

        Returns:
            One-dimensional, ``count`` long where that is given.
        """

    def read_soft(
        self, state: State, count: int | None = None, like: State | None = None
    ) -> NDArray[np.float32]:
        """Read bytes with a value for each bit that tells how sure it is, for a decoder.

        By default 1 and -1, of what :meth:`read` returns.

        Args:
            state: see :meth:`read`; so for the others.
            count: bytes to read.
            like: the network's own state dictionary.

        Returns:
            ``8 * count`` values, the lowest bit of a byte first: positive for 1, negative for 0,
            larger in size the surer; 0 where nothing could be read.
        """
        content = self.read(state, count, like).astype(np.uint8)
        bits = np.unpackbits(content, bitorder="little").astype(np.float32)
        return bits * np.float32(2) - np.float32(1)

    def places(self, state: State, count: int) -> dict[str, torch.Tensor]:
        """Return which elements ``count`` bytes or values use: boolean masks by tensor name.

        Tensors of which no element is used, and entries that the carrier adds, are left out.
        """
        raise NotImplementedError

    def errors(self, sent: State, arrived: State, length: int) -> dict[str, float]:
        """Return how wrong a payload's places became, by tensor name; for those who measure.

        Args:
            sent: what :meth:`write` returned.
            arrived: what became of it.
            length: of the payload, in bytes or values.

        Returns:
            The share of wrong bits, or the relative error of values. A tensor that is missing or
            reshaped counts as zeros.
        """
        raise NotImplementedError

    def plane_errors(self, sent: State, arrived: State, length: int) -> dict[str, dict[int, float]]:
        """Return the share of wrong bits by tensor name and bit of a weight; see :meth:`errors`.

        Returns:
            Nothing for carriers that do not use chosen bits of a number. Bit 0 is the lowest of
            the mantissa.
        """
        return {}


def amplified(
    state: State, written: State, reference: State, share: float, places: dict[str, torch.Tensor]
) -> State:
    """Return a state whose average with other hospitals' is the written one, but for training.

    A server that averages makes ``reference + share * (sent - reference)`` of what one hospital
    sends, plus the others' updates; so ``state + (written - reference) / share`` is sent. The
    average is then the written state plus the average update; in dead weights that is none.

    Args:
        state: as it would be sent without a payload.
        written: the reference with the payload in it.
        reference: what all started from: the broadcast.
        share: the sender's weight in the average, above 0.
        places: boolean masks by tensor name, as :meth:`Carrier.places` returns them.
    """
    result = dict(state)
    for name, mask in places.items():
        own = state[name]
        change = (written[name].double() - reference[name].double()) / share
        result[name] = torch.where(mask.to(own.device), (own + change).to(own.dtype), own)
    return result


def wrong_bits(sent: NDArray[np.uint8], arrived: NDArray[np.uint8]) -> int:
    """Return in how many bits bytes differ; the two are equally long."""
    return int(_ONES[sent ^ arrived].sum(dtype=np.int64))


def relative_error(sent: NDArray[np.float32], arrived: NDArray[np.float32]) -> float:
    """Return the root mean square error over the root mean square of what was sent.

    Values that are not finite count as zero; so does the error of nothing.
    """
    size = float(np.square(sent, dtype=np.float64).sum())
    received = np.nan_to_num(arrived.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return float(np.sqrt(np.square(received - sent).sum() / size)) if size else 0.0


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


CARRIERS: Registry[type[Carrier[Any]]] = Registry("carrier", "fl_sim.carriers")
