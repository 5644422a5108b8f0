"""Flower's strategies that work coordinate by coordinate, some coordinates at a time.

What comes out is what Flower makes of all coordinates at once, bit for bit; only a block of each
upload is in memory. Sums over uploads have the order that they would have, too: an entry is
taken whole and in its shape, or flattened in pieces of at least two elements (of a single column
NumPy adds the rows pairwise).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from numpy.typing import NDArray

from fl_sim.engine.spill import part_of
from strategies.selecting import ranked_by_distance

BLOCK_BYTES = 64 * 2**20
"""Bytes of a block of all uploads, in float64."""

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]
Layers = list[NDArray[Any]]
Piece = tuple[str, int, int]
"""An entry's name and the elements of it, flattened, from and to."""


class MedianInBlocks(FedMedian):
    """Flower's FedMedian, block by block."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregated:
        """Aggregate block by block."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [message.content for message in valid]
        arrays = _aggregated(contents, lambda layers: np.median(np.stack(layers), axis=0))
        return arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class TrimmedMeanInBlocks(FedTrimmedAvg):
    """Flower's FedTrimmedAvg, block by block."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregated:
        """Aggregate block by block."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [message.content for message in valid]
        arrays = _aggregated(contents, lambda layers: trim_mean(np.stack(layers), self.beta))
        return arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class BulyanInBlocks(Bulyan):
    """Flower's Bulyan with Multi-Krum: a choice over whole uploads, then block by block."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregated:
        """Choose, then aggregate block by block."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if len(valid) < 4 * self.num_malicious_nodes + 3:
            return None, None
        contents = [message.content for message in valid]
        theta = len(valid) - 2 * self.num_malicious_nodes
        beta = theta - 2 * self.num_malicious_nodes
        ranked = ranked_by_distance(contents, self.num_malicious_nodes)
        chosen = [contents[place] for place in ranked[:theta]]

        def nearest(layers: Layers) -> Any:
            median = [np.median(layers, axis=0)]
            (mean,) = aggregate_n_closest_weights(median, [[layer] for layer in layers], beta)
            return mean

        arrays = _aggregated(chosen, nearest)
        return arrays, self.train_metrics_aggr_fn(chosen, self.weighted_by_key)


def _aggregated(contents: list[RecordDict], combine: Any) -> ArrayRecord:
    """Combine the uploads piece by piece.

    Args:
        contents: of replies, with one ArrayRecord each.
        combine: makes one array of the same piece of all uploads.
    """
    (key,) = contents[0].array_records
    records = [cast(ArrayRecord, content[key]) for content in contents]
    made: dict[str, Layers] = {}
    for name, start, stop in pieces(records[0], BLOCK_BYTES // (8 * len(records))):
        layers = [_piece(record[name], start, stop) for record in records]
        made.setdefault(name, []).append(np.asarray(combine(layers)))
    return ArrayRecord({n: Array(_joined(p, records[0][n])) for n, p in made.items()})


def pieces(record: ArrayRecord, coordinates: int) -> Iterator[Piece]:
    """Yield what is worked on at a time, none of it a single element of a larger entry.

    Args:
        record: an upload.
        coordinates: of a piece at most, from 3; where it is less, 3.
    """
    for name, array in record.items():
        size = math.prod(array.shape)
        number = max(1, min(math.ceil(size / max(1, coordinates)), size // 2))
        ends = [size * place // number for place in range(number + 1)]
        for start, stop in itertools.pairwise(ends):
            yield name, start, stop


def _piece(array: Array, start: int, stop: int) -> NDArray[np.generic]:
    if stop - start == math.prod(array.shape):
        return array.numpy()
    return part_of(array, start, stop)


def _joined(parts: Layers, array: Array) -> NDArray[np.generic]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts).reshape(array.shape)
