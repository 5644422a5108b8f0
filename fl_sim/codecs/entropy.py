"""Entropy coding: symbols to bytes and back, by the range coder of ``constriction``.

Range coding (Martin 1979) with a 64-bit state and 32-bit words, by the library of Bamler (2022,
arXiv 2201.01741), and the integer tables of CompressAI's entropy models (Bégaint et al. 2020, arXiv
2011.03029). Codes come out of models that somebody has changed. The decoder takes any bytes, in
time and memory that follow from the number of symbols alone; a string that ends too early goes on
with zeros, so it too always decodes to the same symbols.

CompressAI's own coder (1.2.8) checks no bounds when it decodes, so it needed a process of its own;
and on DermaMNIST's and ChestMNIST's images of 28 pixels its strings are 5 to 9 % longer.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

Integers = NDArray[np.int32]

LARGEST_SYMBOL = 2**20 - 1
"""Beyond this a symbol is taken for an error."""

LARGEST_COUNT = 2**22
"""Symbols of one string at most."""

_TOTAL = 2**16  # what frequencies sum to

_WORD = 4  # bytes; strings have at least one word

_PLAIN = constriction.stream.model.Uniform(2 * (LARGEST_SYMBOL + 1))  # of symbols outside

_DIVERGED = (
    "The entropy coder's tables cannot be built from the codec's weights: they are damaged, or "
    "training diverged; lower its learning_rate."
)


@dataclass(frozen=True)
class Tables:
    """Integer tables of the entropy coder: a row is the distribution of some of the symbols.

    Args:
        cdf: cumulative frequencies, int32 ``[rows, entries]``; row ``i`` rises strictly from 0 to
            65536 over its first ``lengths[i]`` entries. Its last interval announces a symbol
            outside the row, which then follows in plain bits.
        lengths: int32 ``[rows]``, at least 3.
        offsets: the symbol that a row's first interval stands for, int32 ``[rows]``.

    Raises:
        FlSimError: if the tables are not like that.
    """

    cdf: Integers
    lengths: Integers
    offsets: Integers

    def __post_init__(self) -> None:
        for name in ("cdf", "lengths", "offsets"):
            array = np.ascontiguousarray(np.asarray(getattr(self, name)), dtype=np.int32)
            object.__setattr__(self, name, array)
        if not self._shapes_fit() or not all(map(_is_distribution, self.rows())):
            raise FlSimError("The entropy coder's tables are damaged; save the codec anew.")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the coder's own objects, which cannot be pickled and are made anew."""
        return {name: value for name, value in vars(self).items() if name != "models"}

    def rows(self) -> list[Integers]:
        """Return each row's entries."""
        return [row[:length] for row, length in zip(self.cdf, self.lengths, strict=True)]

    @functools.cached_property
    def models(self) -> list[Any]:
        """Each row's distribution as the coder takes it: of its intervals' numbers from 0."""
        categorical = constriction.stream.model.Categorical
        return [categorical(np.diff(row) / _TOTAL, perfect=False) for row in self.rows()]

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tables by name; the rows are stored one after the other."""
        return {
            f"{prefix}cdf": torch.from_numpy(np.concatenate(self.rows())),
            f"{prefix}lengths": torch.from_numpy(self.lengths.copy()),
            f"{prefix}offsets": torch.from_numpy(self.offsets.copy()),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], prefix: str = "") -> "Tables":
        """Build tables from what :meth:`tensors` returned.

        Raises:
            FlSimError: if one is missing or damaged.
        """
        try:
            flat, lengths, offsets = (
                tensors[f"{prefix}{name}"].detach().cpu().numpy().reshape(-1).astype(np.int64)
                for name in ("cdf", "lengths", "offsets")
            )
        except KeyError as error:
            raise FlSimError(f"The entropy coder's tables lack {error}.") from None
        if not len(lengths) or lengths.min() < 1 or lengths.sum() != len(flat):
            raise FlSimError("The entropy coder's tables are damaged; save the codec anew.")
        cdf = np.zeros((len(lengths), lengths.max()), dtype=np.int32)
        cdf[np.arange(lengths.max()) < lengths[:, None]] = flat
        return cls(cdf, lengths.astype(np.int32), offsets.astype(np.int32))

    def joined(self, other: "Tables") -> "Tables":
        """Return tables with another's rows after these."""
        width = max(self.cdf.shape[1], other.cdf.shape[1])
        cdfs = [np.pad(t.cdf, ((0, 0), (0, width - t.cdf.shape[1]))) for t in (self, other)]
        return Tables(
            np.concatenate(cdfs),
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.offsets, other.offsets]),
        )

    def _shapes_fit(self) -> bool:
        rows = len(self.cdf)
        if self.cdf.ndim != 2 or not rows or {self.lengths.shape, self.offsets.shape} != {(rows,)}:
            return False
        large = np.abs(self.offsets.astype(np.int64)).max() > LARGEST_SYMBOL
        return not large and 3 <= self.lengths.min() <= self.lengths.max() <= self.cdf.shape[1]


def factorized_prior(entropy_bottleneck: "EntropyBottleneck") -> tuple[Tables, torch.Tensor]:
    """Return a factorized prior's tables, and each channel's median: symbols count from it.

    Returns:
        Tables, and medians float32 ``[channels]``. A symbol is ``round(value - median)``.
    """
    module = calibrated(entropy_bottleneck)
    return _tables_of(module), module.quantiles.detach()[:, 0, 1].clone()


def calibrated(entropy_bottleneck: "EntropyBottleneck") -> "EntropyBottleneck":
    """Return a copy on the CPU whose quantiles and tables are those of its distributions now.

    The quantiles are found by bisection, so training needs no auxiliary loss for them.
    """
    module = copy.deepcopy(entropy_bottleneck).cpu().float()
    with torch.no_grad():
        # The bisection would never end where a distribution is not finite.
        module.quantiles.copy_(torch.tensor([-1e5, 0.0, 1e5]).expand_as(module.quantiles))
        if not module.loss().isfinite():
            raise FlSimError(_DIVERGED)
    _update(lambda: module.update(force=True, update_quantiles=True))
    return module


def gaussian_tables(gaussian_conditional: "GaussianConditional") -> Tables:
    """Return the tables of Gaussian symbols: row ``i`` has the scale ``scale_table[i]``.

    Args:
        gaussian_conditional: not changed. Without a scale table of its own it gets CompressAI's,
            64 scales from 0.11 to 256.
    """
    from compressai.models.base import get_scale_table

    module = copy.deepcopy(gaussian_conditional).cpu().float()
    if module.scale_table.numel() == 0:
        module.scale_table = get_scale_table()
    _update(module.update)
    return _tables_of(module)


@dataclass(frozen=True)
class Symbols:
    """Integers to be encoded.

    Args:
        values: integers of any type, ``[count]``, at most ``LARGEST_SYMBOL`` in size.
        rows: each one's row of the tables, int32 ``[count]``.
    """

    values: NDArray[Any]
    rows: Integers


def encode_symbols(parts: Sequence[Symbols], tables: Tables) -> bytes:
    """Encode integers; the string says neither how many there are nor which rows they used.

    Args:
        parts: what is decoded one after the other.
        tables: the distributions.

    Raises:
        FlSimError: if a symbol is too large, or there are too many.
    """
    count = sum(len(part.values) for part in parts)
    if count > LARGEST_COUNT:
        raise FlSimError(f"An image of {count} latents is too large; cut it into parts.")
    coder = constriction.stream.queue.RangeEncoder()
    for part in parts:
        _encode(coder, part, tables)
    return bytes(coder.get_compressed().astype("<u4").tobytes())


class SymbolDecoder:
    """Decodes one string, part by part.

    Args:
        string: perhaps damaged.
        count: symbols of all parts.
        tables: the distributions.

    Raises:
        FlSimError: if so many symbols cannot have such a string, or they are too many.
    """

    def __init__(self, string: bytes, count: int, tables: Tables) -> None:
        if count > LARGEST_COUNT:
            raise FlSimError(f"Images of {count} latents are too large to be decoded.")
        if not _WORD <= len(string) <= longest_string(count):
            raise FlSimError(
                f"The code has {len(string)} bytes, which {count} symbols cannot have."
            )
        words = np.frombuffer(string + bytes(-len(string) % _WORD), dtype="<u4")
        self._coder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))
        self._tables = tables

    def take(self, rows: Integers) -> Integers:
        """Decode the next symbols, given each one's row of the tables, int32 ``[count]``.

        Raises:
            FlSimError: if the string is none that the encoder makes.
        """
        models, intervals = self._tables.models, np.empty(len(rows), dtype=np.int32)
        try:
            for row, places in _by_row(rows):
                intervals[places] = self._coder.decode(models[row], len(places))
            outside = intervals == self._tables.lengths[rows] - 2
            plain = self._coder.decode(_PLAIN, int(outside.sum()))
        except AssertionError:
            raise FlSimError("The code is damaged: no symbols give it.") from None
        symbols = intervals + self._tables.offsets[rows]
        symbols[outside] = plain - np.int32(LARGEST_SYMBOL + 1)
        return symbols


def longest_string(symbols: int) -> int:
    """Return how many bytes a string of so many symbols has at most.

    A symbol outside its row costs 16 bits and its own 21; what the coder rounds is less than 1.
    """
    return 8 + 5 * symbols


def _encode(coder: Any, part: Symbols, tables: Tables) -> None:
    if not np.abs(part.values.astype(np.float64)).max(initial=0) <= LARGEST_SYMBOL:
        raise FlSimError(
            f"A latent is larger than {LARGEST_SYMBOL}, which the entropy coder does not take; "
            f"the codec's weights are damaged or its training diverged."
        )
    symbols = part.values.astype(np.int32)
    intervals, last = symbols - tables.offsets[part.rows], tables.lengths[part.rows] - 2
    outside = (intervals < 0) | (intervals >= last)
    intervals[outside] = last[outside]
    for row, places in _by_row(part.rows):
        coder.encode(intervals[places], tables.models[row])
    coder.encode(symbols[outside] + np.int32(LARGEST_SYMBOL + 1), _PLAIN)


def _by_row(rows: Integers) -> list[tuple[int, NDArray[np.intp]]]:
    """Return each row in use and the places of its symbols: the coder is fast where they agree."""
    used, counts = np.unique(rows, return_counts=True)
    places = np.split(np.argsort(rows, kind="stable"), np.cumsum(counts))
    return list(zip(used.tolist(), places, strict=False))  # what is left is empty


def _is_distribution(row: Integers) -> bool:
    return bool(row[0] == 0 and row[-1] == _TOTAL and (np.diff(row) > 0).all())


def _update(update: Callable[[], object]) -> None:
    try:
        with torch.no_grad():
            update()
    except (ValueError, RuntimeError, OverflowError):
        raise FlSimError(_DIVERGED) from None


def _tables_of(module: Any) -> Tables:
    return Tables(
        module.quantized_cdf.numpy(), module.cdf_length.reshape(-1).numpy(), module.offset.numpy()
    )
