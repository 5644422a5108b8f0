"""What becomes of a round's uploads while they come: they are summed at once, or kept.

A strategy that needs no more than the uploads' mean gets it, and none of them is held. Flower
divides weights by their sum before it multiplies, in the uploads' precision; that sum is known
beforehand, since a hospital's weight is the number of images that it was dealt, so the running mean
has Flower's order and precision and equals what Flower would make of all uploads, bit for bit. Only
where an upload fails in mid-round were those before it divided by too much. Rounds of up to
:data:`INSURED_BYTES` are then summed again, from uploads that were kept for that, mostly on disk;
in a larger round the mean itself is scaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl_sim.engine.records import as_numpy, from_record
from fl_sim.engine.spill import Spill
from strategies.base import Aggregator
from strategies.inner import Inner
from strategies.merging import for_strategy, weighted_mean
from strategies.observers import State
from strategies.uploads import Upload

MEMORY_BYTES = 128 * 2**20
"""Bytes of a round's uploads that are kept in memory; the rest lies on disk."""

INSURED_BYTES = 4 * 2**30
"""Largest round, as bytes that it may upload, whose uploads are kept although they are summed."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Split:
    """Which of the broadcast's entries go where.

    Args:
        integers: those that are not floating point.
        aside: those that the strategy does not get; the server averages them itself.
        float64: whether the strategy gets floats widened.
    """

    integers: frozenset[str]
    aside: frozenset[str]
    float64: bool

    def view(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return what the strategy gets of a state."""
        return for_strategy(arrays, self.integers, float64=self.float64, skip=self.aside)

    def values(self, state: Mapping[str, torch.Tensor]) -> Arrays:
        """Return the same of a state that is in memory; what is not widened shares it."""
        return {
            name: as_numpy(tensor.double() if self.float64 or name in self.integers else tensor)
            for name, tensor in state.items()
            if name not in self.aside
        }


class RunningMean:
    """A weighted mean of arrays that are given one after another, as Flower computes it.

    Args:
        total: sum of all weights.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._sums: dict[str, NDArray[Any]] = {}

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add arrays; they are left as they are."""
        factor = weight / self._total
        for name, value in arrays.items():
            if name in self._sums:
                self._sums[name] += value * factor
            else:
                self._sums[name] = value * factor

    def result(self, total: float) -> Arrays:
        """Return the mean.

        Args:
            total: sum of the weights that came; where it is another than was expected, the mean is
                scaled, which changes the last digits.
        """
        if total == self._total:
            return self._sums
        return {n: value * (self._total / total) for n, value in self._sums.items()}


class Gathering:
    """A round's uploads, kept for a strategy that gets all of them.

    Args:
        aggregator: the strategy, and what is known of it.
        split: what it gets.
        spill: where the uploads are kept.
    """

    def __init__(self, aggregator: Aggregator, split: Split, spill: Spill) -> None:
        self._aggregator = aggregator
        self._split = split
        self._spill = spill
        self.uploads: list[Upload] = []
        """Those that were accepted, in the hospitals' order."""

    def take(self, upload: Upload, arrays: ArrayRecord, state: State) -> None:
        """Accept an upload.

        Args:
            upload: without arrays.
            arrays: of the broadcast's entries.
            state: the same, deserialised.
        """
        upload.arrays = self._spill.keep(arrays)
        self.uploads.append(upload)

    def combine(
        self, server_round: int, inner: Inner, expected: State
    ) -> tuple[State, MetricRecord | None]:
        """Let the strategy aggregate what was accepted."""
        inner.chosen = {upload.hospital: float(upload.weight) for upload in self.uploads}
        for upload, metrics in zip(self.uploads, self._metrics(), strict=True):
            assert upload.arrays is not None
            arrays = self._split.view(upload.arrays)
            upload.message.content = RecordDict({"arrays": arrays, "metrics": metrics})
        messages = [upload.message for upload in self.uploads]
        return inner.aggregate_train(server_round, messages, expected)

    def only(self, name: str, hospital: int) -> torch.Tensor:
        """Return an entry of the single upload that was chosen, as it was sent."""
        return self._entry(name, hospital)

    def mean(self, name: str, chosen: Mapping[int, float]) -> torch.Tensor:
        """Return the mean of an entry that the strategy did not get, in float64."""
        return weighted_mean(lambda hospital: self._entry(name, hospital), chosen)

    def _entry(self, name: str, hospital: int) -> torch.Tensor:
        upload = next(upload for upload in self.uploads if upload.hospital == hospital)
        assert upload.arrays is not None
        return from_record(ArrayRecord({name: upload.arrays[name]}))[name]

    def _metrics(self) -> list[MetricRecord]:
        """Return each upload's metrics; Flower ends the run if hospitals send different ones."""
        common = set.intersection(*(set(upload.metrics) for upload in self.uploads))
        return [
            MetricRecord(
                {
                    **{key: value for key, value in upload.metrics.items() if key in common},
                    "hospital": upload.hospital,
                }
            )
            for upload in self.uploads
        ]


class Summing(Gathering):
    """A round's uploads, summed as they come for a strategy that needs their mean alone.

    Args:
        aggregator, split: as above.
        spill: where uploads are kept all the same; ``None`` for nowhere.
        expected: the sum of weights if all come; ``None`` if nobody knows. Then there is a spill.
    """

    def __init__(
        self, aggregator: Aggregator, split: Split, spill: Spill | None, expected: float | None
    ) -> None:
        super().__init__(aggregator, split, spill or Spill())
        self._kept = spill is not None
        self._expected = expected
        self._begin(expected)

    def _begin(self, total: float | None) -> None:
        self._total = total
        self._mean = None if total is None else RunningMean(total)
        self._aside: State = {}
        self._first: State = {}

    def take(self, upload: Upload, arrays: ArrayRecord, state: State) -> None:
        """Add an upload to the sum, and keep it if it may be needed again."""
        if self._kept:
            super().take(upload, arrays, state)
        else:
            self.uploads.append(upload)
        if self._mean is not None:
            self._add(upload, state)

    def combine(
        self, server_round: int, inner: Inner, expected: State
    ) -> tuple[State, MetricRecord | None]:
        """Finish the mean, and let the strategy take its step from it."""
        total = sum(upload.weight for upload in self.uploads)
        if total != self._total and self._kept:
            self._begin(total)
            for upload in self.uploads:
                assert upload.arrays is not None
                self._add(upload, from_record(upload.arrays))
        assert self._mean is not None
        arrays = ArrayRecord({n: Array(np.asarray(v)) for n, v in self._mean.result(total).items()})
        contents = [RecordDict({"metrics": metrics}) for metrics in self._metrics()]
        first = self.uploads[0].message
        combined = inner.aggregate_mean(server_round, arrays, contents, first, expected)
        inner.chosen = {upload.hospital: float(upload.weight) for upload in self.uploads}
        return combined

    def only(self, name: str, hospital: int) -> torch.Tensor:
        """Return an entry of the single upload that came, as it was sent."""
        return self._first[name]

    def mean(self, name: str, chosen: Mapping[int, float]) -> torch.Tensor:
        """Return the mean of an entry that the strategy did not get, in float64."""
        total = sum(chosen.values())
        assert self._total is not None
        return self._aside[name] * (1.0 if total == self._total else self._total / total)

    def _add(self, upload: Upload, state: State) -> None:
        assert self._mean is not None and self._total is not None
        if not self._first:
            self._first = {name: state[name].clone() for name in self._split.integers}
        values = self._split.values(state)
        if self._aggregator.each is not None:
            values = self._aggregator.each(values)
        self._mean.add(values, upload.weight)
        factor = float(upload.weight) / self._total
        zero = torch.zeros((), dtype=torch.float64)
        for name in self._split.aside:
            self._aside[name] = self._aside.get(name, zero) + state[name].double() * factor
