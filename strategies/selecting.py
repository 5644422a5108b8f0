"""Krum and Multi-Krum over uploads that do not all fit in memory.

Flower's choice depends on the last bits of distances: two uploads that are nearest to each other
have the same score but for rounding. So the products of uploads are made by the same BLAS routine
over the same matrix, of which the kernel maps into memory what is at work.
"""

import math
import tempfile
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Krum, MultiKrum
from flwr.serverapp.strategy.fedavg import FedAvg
from flwr.serverapp.strategy.multikrum import compute_distances
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray

MATRIX_BYTES = 256 * 2**20
"""Largest matrix of all uploads that is held in memory."""


def squared_distances(records: list[ArrayRecord], matrix_bytes: int | None = None) -> NDArray[Any]:
    """Return squared L2 distances between uploads, ``[n, n]``, as Flower computes them.

    Args:
        records: the uploads, with the same entries.
        matrix_bytes: above which the matrix of uploads lies on disk, in a file without a name;
            ``None`` for :data:`MATRIX_BYTES`.
    """
    dtype = np.result_type(*(np.dtype(array.dtype) for array in records[0].values()))
    columns = sum(math.prod(array.shape) for array in records[0].values())
    size = len(records) * columns * dtype.itemsize
    if size <= (MATRIX_BYTES if matrix_bytes is None else matrix_bytes):
        return compute_distances(records)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        matrix = np.memmap(file, dtype, "r+", shape=(len(records), columns))
        norms = np.array([_fill(row, rec) for row, rec in zip(matrix, records, strict=True)])
        # Mapped once more: for a matrix by itself NumPy takes another routine.
        again = np.memmap(file, dtype, "r", shape=matrix.shape)
        # Flower doubles before the product; a power of two changes no digit.
        products = 2 * np.asarray(matrix @ again.T)
        return cast(NDArray[Any], norms[:, None] + norms[None, :] - products)


def _fill(row: NDArray[Any], record: ArrayRecord) -> np.generic:
    start = 0
    for array in record.values():
        stop = start + math.prod(array.shape)
        row[start:stop] = array.numpy().reshape(-1)
        start = stop
    return cast(np.generic, np.square(row).sum())


def ranked_by_distance(contents: list[RecordDict], num_malicious_nodes: int) -> list[int]:
    """Return the places of all uploads, the one nearest to its neighbours first.

    Args:
        contents: of replies, with one ArrayRecord each.
        num_malicious_nodes: ``f``; an upload counts by its ``n - f - 2`` nearest.
    """
    (key,) = contents[0].array_records
    distances = squared_distances([cast(ArrayRecord, content[key]) for content in contents])
    closest = max(1, len(contents) - num_malicious_nodes - 2)
    scores = [np.sum(row[np.argsort(row)[1 : closest + 1]]) for row in distances]
    return [int(place) for place in np.argsort(scores)]


class _Selecting(FedAvg):
    """Averages the uploads that lie nearest to the others, and reads no other one twice."""

    num_malicious_nodes: int
    num_nodes_to_select: int

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Choose, then average."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [message.content for message in valid]
        ranked = ranked_by_distance(contents, self.num_malicious_nodes)
        chosen = [contents[place] for place in ranked[: self.num_nodes_to_select]]
        arrays = aggregate_arrayrecords(chosen, self.weighted_by_key)
        return arrays, self.train_metrics_aggr_fn(chosen, self.weighted_by_key)


class SelectingKrum(_Selecting, Krum):
    """Flower's Krum."""


class SelectingMultiKrum(_Selecting, MultiKrum):
    """Flower's Multi-Krum."""
