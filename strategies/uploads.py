"""What a server accepts from a hospital. Every part of a reply is checked here, and only here.

A reply is an error, or exactly one ArrayRecord and one MetricRecord. The arrays have the
broadcast's entries with its shapes and dtypes, and values that such entries can have (see
:mod:`fl_sim.models.entries`), small enough to be squared and summed (:data:`LARGEST`). The metrics
are plain numbers under plain names, the weight ``num-examples`` is what the hospital was dealt,
and those that the server needs are there.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fl_sim.engine.records import from_record
from fl_sim.errors import FlSimError
from fl_sim.faults import first_line
from fl_sim.models.entries import entry_problem

WEIGHT = "num-examples"

LARGEST = 1e15
"""Largest size of a value in an upload. Squares of differences of such values, summed over 100,000
rounds or hospitals, stay within float32, whose largest number is 3.4e38."""

MOST_EXAMPLES = 100_000_000
"""Most training images that a hospital is believed to have, where nobody knows its number."""

_MOST_METRICS = 1000
_METRIC_NAME = re.compile(r"[A-Za-z][\w.:/\[\] ]*(-\w[\w.:/\[\] ]*)*", re.ASCII)
_LONGEST_NAME = 200
_NEVER_NEGATIVE = ("seconds", "steps", "images", "attacked", "dp-epsilon")
# What a model file can hold, and so may lie beside the broadcast's entries.
_STORABLE = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
}


class Rejected(Exception):
    """An upload that cannot be used; the message is a sentence without the hospital's name."""


@dataclass(frozen=True)
class Terms:
    """What a round's uploads are held against.

    Args:
        broadcast: what the hospitals were sent.
        hospitals: how many uploads are summed at most.
        needed: metrics that each must have, beside the weight.
    """

    broadcast: Mapping[str, torch.Tensor]
    hospitals: int = 1
    needed: Collection[str] = ()


@dataclass
class Upload:
    """An accepted upload.

    Args:
        hospital: who sent it.
        message: the reply; its arrays are not in it any more.
        metrics: its metrics; the weight is among them.
        arrays: of the broadcast's entries, serialised, perhaps on disk; ``None`` where the upload
            was added to a sum and not kept.
    """

    hospital: int
    message: Message
    metrics: dict[str, int | float]
    arrays: ArrayRecord | None = None

    @property
    def weight(self) -> int | float:
        """How many training images it stands for."""
        return self.metrics[WEIGHT]


class Received(Sequence[dict[str, torch.Tensor]]):
    """A round's accepted uploads, as a defence gets them: each one is read when it is asked for.

    Args:
        records: the uploads' arrays, in the hospitals' order; ``None`` for one that was not kept.
        rename: changes the names of what was read.
    """

    def __init__(
        self,
        records: Iterable[ArrayRecord | None] = (),
        rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    ) -> None:
        self._records = tuple(records)
        self._rename = rename

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> dict[str, torch.Tensor]: ...

    @overload
    def __getitem__(self, place: slice) -> "Received": ...

    def __getitem__(self, place: int | slice) -> "dict[str, torch.Tensor] | Received":
        if isinstance(place, slice):
            return Received(self._records[place], self._rename)
        record = self._records[place]
        if record is None:
            raise FlSimError(
                "It reads the round's uploads, which were not kept; a defence that does says so in "
                "`needs_uploads`."
            )
        return self._rename(from_record(record))

    def renamed(
        self, rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    ) -> "Received":
        """Return the same uploads with other names of their entries."""
        return Received(self._records, rename)


def read_upload(
    message: Message, terms: Terms, dealt: int | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, int | float]]:
    """Deserialise a reply and check it.

    Args:
        message: a reply.
        terms: what the round's uploads are held against.
        dealt: how many training images this hospital has, where the server knows.

    Returns:
        The uploaded state, in the broadcast's order; further entries, which nobody asked for and
        which are not aggregated; and the scalar metrics.

    Raises:
        Rejected: if the reply is an error, or anything in it is not as expected.
    """
    arrays, metrics = _only_records(message)
    missing = next((name for name in terms.broadcast if name not in arrays), None)
    if missing:
        raise Rejected(f"the upload lacks the tensor '{missing}'")
    try:
        state = from_record(arrays)
    except ValueError as error:
        raise Rejected(f"the upload cannot be read: {first_line(str(error))}") from None
    for name, reference in terms.broadcast.items():
        problem = entry_problem(name, state[name], reference)
        problem = problem or _too_large(name, state[name], terms.hospitals)
        if problem:
            raise Rejected(f"the upload's {problem}")
    further = {name: state[name] for name in state if name not in terms.broadcast}
    for name, tensor in further.items():
        _check_further(name, tensor)
    scalars = _scalars(metrics, (WEIGHT, *terms.needed))
    _check_weight(scalars[WEIGHT], dealt)
    return {name: state[name] for name in terms.broadcast}, further, scalars


def check_arrays(arrays: ArrayRecord, broadcast: Mapping[str, torch.Tensor]) -> None:
    """Check of an app's upload only what no strategy can work with, whatever it is to hold.

    Raises:
        Rejected: if it cannot be read, is not finite, or has an entry of the broadcast in another
            shape.
    """
    try:
        state = from_record(arrays)
    except ValueError as error:
        raise Rejected(f"the upload cannot be read: {first_line(str(error))}") from None
    for name, tensor in state.items():
        reference = broadcast.get(name)
        if reference is not None and tensor.shape != reference.shape:
            raise Rejected(
                f"the upload's tensor '{_cut(name)}' has shape {tuple(tensor.shape)}, not "
                f"{tuple(reference.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise Rejected(f"the upload's '{_cut(name)}' has values that are NaN or infinite")


def check_evaluation(message: Message) -> None:
    """Check a reply to an evaluation message: metrics alone, with a weight.

    Raises:
        Rejected: if it is an error, or anything in it is not as expected.
    """
    (metrics,) = _records(message, {MetricRecord: 1, ArrayRecord: 0, ConfigRecord: 0})
    _check_weight(_scalars(metrics, (WEIGHT,))[WEIGHT], None)


def read_hospital(message: Message, hospitals: int) -> int:
    """Return the number that a node says it has.

    Raises:
        Rejected: if the reply is an error, or holds no number from 0 to ``hospitals - 1``.
    """
    (config,) = _records(message, {ConfigRecord: 1, ArrayRecord: 0, MetricRecord: 0})
    number = config.get("hospital")
    if not _is_int(number) or not 0 <= number < hospitals:
        raise Rejected(
            f"it says that it is hospital {_shown(number)}, and they are numbered from 0 to "
            f"{hospitals - 1}"
        )
    return int(number)


def explain_failures(failures: Mapping[int, str]) -> str:
    """Put each hospital's reason in one line, hospitals with the same reason together."""
    by_reason: dict[str, list[int]] = {}
    for hospital in sorted(failures):
        by_reason.setdefault(failures[hospital], []).append(hospital)
    return "; ".join(
        f"{_hospitals(numbers)}: {reason.rstrip('.')}" for reason, numbers in by_reason.items()
    )


def _hospitals(numbers: Sequence[int]) -> str:
    return ("hospital " if len(numbers) == 1 else "hospitals ") + ", ".join(map(str, numbers))


def error_reason(message: Message) -> str:
    """Return an error reply's reason; Flower writes ``<class 'x.Y'>:<'text'>`` for exceptions."""
    reason = message.error.reason
    if not isinstance(reason, str) or not reason.strip():
        return f"Flower's error {message.error.code}"
    match = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'\s*(.*)'>", reason, re.DOTALL)
    return f"{match[1]}: {match[2]}" if match else reason


def _only_records(message: Message) -> tuple[ArrayRecord, MetricRecord]:
    arrays, metrics = _records(message, {ArrayRecord: 1, MetricRecord: 1, ConfigRecord: 0})
    return arrays, metrics


def _records(message: Message, wanted: Mapping[type, int]) -> list[Any]:
    """Return a reply's records, in the order of the kinds; just so many of each must be there."""
    if message.has_error():
        raise Rejected(error_reason(message))
    records = list(message.content.values())
    found = {kind: [r for r in records if isinstance(r, kind)] for kind in wanted}
    if any(len(found[kind]) != number for kind, number in wanted.items()):
        has = ", ".join(f"{len(found[kind])} {kind.__name__}s" for kind in wanted)
        needs = ", ".join(f"{number} {kind.__name__}" for kind, number in wanted.items() if number)
        raise Rejected(f"the reply has {has}, and should have {needs} and nothing else")
    return [record for kind in wanted for record in found[kind]]


def _too_large(name: str, tensor: torch.Tensor, hospitals: int) -> str | None:
    if not (tensor.is_floating_point() and tensor.numel()):
        return None
    largest = float(tensor.abs().max())
    most = min(LARGEST, torch.finfo(tensor.dtype).max / hospitals)
    if largest <= most:
        return None
    return (
        f"tensor '{name}' has values of {largest:.3g}, which overflow when they are squared or "
        f"summed; at most {most:.3g} are aggregated"
    )


def _check_further(name: str, tensor: torch.Tensor) -> None:
    """Refuse an entry that no model file could hold: it would end the run that measures it."""
    if not name.isprintable() or len(name) > _LONGEST_NAME or name in ("", "__metadata__"):
        raise Rejected(f"the upload has a further tensor called '{_cut(name)}'")
    if tensor.dtype not in _STORABLE:
        raise Rejected(f"the upload's further tensor '{name}' is {tensor.dtype}")


def _scalars(metrics: MetricRecord, needed: Collection[str]) -> dict[str, int | float]:
    """Check the metrics; lists, which nobody reads, are left out."""
    for name in needed:
        if name not in metrics:
            raise Rejected(f"the upload lacks the metric '{name}'")
        if isinstance(metrics[name], list):
            raise Rejected(f"the upload's metric '{name}' is a list, not a number")
    if len(metrics) > _MOST_METRICS:
        raise Rejected(f"the upload has {len(metrics)} metrics, and {_MOST_METRICS} are the most")
    scalars: dict[str, int | float] = {}
    for name, value in metrics.items():
        if len(name) > _LONGEST_NAME or not _METRIC_NAME.fullmatch(name):
            raise Rejected(f"the upload has a metric called '{_cut(name)}'")
        if isinstance(value, list):
            continue
        if not _PLAIN.get(name, _is_plain)(value):
            raise Rejected(f"the upload's metric '{name}' is {_shown(value)}")
        scalars[name] = value
    return scalars


def _check_weight(weight: int | float, dealt: int | None) -> None:
    if weight <= 0 or weight != int(weight):
        raise Rejected(f"the upload's '{WEIGHT}' is {_shown(weight)}, not a positive whole number")
    if dealt is not None and weight != dealt:
        raise Rejected(
            f"the upload claims {_shown(int(weight))} training images ('{WEIGHT}'), and the "
            f"hospital was dealt {dealt}"
        )
    if weight > MOST_EXAMPLES:
        raise Rejected(
            f"the upload claims {_shown(int(weight))} training images ('{WEIGHT}'), and at most "
            f"{MOST_EXAMPLES} are believed where nobody knows their number"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_int(value) and -(1 << 63) <= value < 1 << 63


def _is_never_negative(value: Any) -> bool:
    return _is_plain(value) and value >= 0


_PLAIN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_NEVER_NEGATIVE, _is_never_negative),
    # A hospital that adds next to no noise may have spent without end.
    "dp-epsilon": lambda value: value == math.inf or _is_never_negative(value),
    "attacked": lambda value: _is_plain(value) and value in (0, 1),
}


def _shown(value: Any) -> str:
    if _is_int(value) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return first_line(text, 60)
