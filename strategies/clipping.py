"""FedAvg whose updates are clipped in norm before they are averaged."""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray


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
        norms = [self._norm(reply) for reply in kept]
        bound = self.max_norm
        if bound is None:
            bound = self.median_factor * float(np.median(norms)) if norms else 0.0
        for reply, norm in zip(kept, norms, strict=True):
            if norm > bound:
                self._scale(reply, bound / norm)
        return super().aggregate_train(server_round, kept)

    def _norm(self, reply: Message) -> float:
        squares = 0.0
        for name, value in _arrays(reply).items():
            squares += float(np.square(value.numpy() - self._broadcast[name]).sum())
        return float(np.sqrt(squares))

    def _scale(self, reply: Message, factor: float) -> None:
        clipped = ArrayRecord()
        for name, array in _arrays(reply).items():
            value = array.numpy()
            start = self._broadcast[name]
            moved = start + factor * (value - start)
            clipped[name] = Array(np.asarray(moved.astype(value.dtype)))
        (key,) = reply.content.array_records
        reply.content = RecordDict({**reply.content, key: clipped})


def _arrays(reply: Message) -> ArrayRecord:
    return next(iter(reply.content.array_records.values()))
