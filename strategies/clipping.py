"""FedAvg whose updates are clipped in norm before they are averaged."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fl_sim.engine.spill import Late

Arrays = dict[str, NDArray[Any]]


class NormClippedFedAvg(FedAvg):
    """FedAvg over ``broadcast + min(1, bound / ||update||) * update``.

    Source: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", arXiv 1911.07963,
    section 5. The norm is over every entry that is averaged.

    Args:
        max_norm: the bound; ``None`` for ``median_factor`` times the median norm of the round.
        median_factor: see ``max_norm``.
    """

    def __init__(self, max_norm: float | None = None, median_factor: float = 1.0) -> None:
        super().__init__()
        self.max_norm = max_norm
        self.median_factor = median_factor
        self._broadcast: dict[str, NDArray[np.float64]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what updates are counted from."""
        self._broadcast = {n: a.numpy().astype(np.float64) for n, a in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip every update, then average."""
        kept = [reply for reply in replies if not reply.has_error()]
        norms = [self._norm(_values(reply)) for reply in kept]
        bound = self.max_norm
        if bound is None:
            bound = self.median_factor * float(np.median(norms)) if norms else 0.0
        for reply, norm in zip(kept, norms, strict=True):
            if norm > bound:
                self._scale(reply, bound / norm)
        return super().aggregate_train(server_round, kept)

    def clipped(self, arrays: Arrays) -> Arrays:
        """Return an upload whose update has at most the norm ``max_norm``, which must be given."""
        assert self.max_norm is not None
        norm = self._norm(arrays)
        if norm <= self.max_norm:
            return arrays
        factor = self.max_norm / norm
        return {name: self._moved(name, value, factor) for name, value in arrays.items()}

    def _norm(self, arrays: Mapping[str, NDArray[Any]]) -> float:
        squares = 0.0
        for name, value in arrays.items():
            squares += float(np.square(value - self._broadcast[name]).sum())
        return float(np.sqrt(squares))

    def _moved(self, name: str, value: NDArray[Any], factor: float) -> NDArray[Any]:
        start = self._broadcast[name]
        return np.asarray((start + factor * (value - start)).astype(value.dtype))

    def _scale(self, reply: Message, factor: float) -> None:
        """Put clipped arrays in a reply, made one by one when they are averaged."""
        clipped = ArrayRecord()
        for name, array in _arrays(reply).items():

            def load(name: str = name, read: Callable[[], NDArray[Any]] = array.numpy) -> bytes:
                stream = io.BytesIO()
                np.save(stream, self._moved(name, read(), factor), allow_pickle=False)
                return stream.getvalue()

            clipped[name] = Late(array.dtype, array.shape, SType.NUMPY, load)
        (key,) = reply.content.array_records
        reply.content = RecordDict({**reply.content, key: clipped})


class _Values(Mapping[str, NDArray[Any]]):
    """A record's arrays, of which each is read when it is asked for."""

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._record[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)


def _values(reply: Message) -> _Values:
    return _Values(_arrays(reply))


def _arrays(reply: Message) -> ArrayRecord:
    return next(iter(reply.content.array_records.values()))
