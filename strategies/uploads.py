"""What a server accepts from a hospital: the broadcast's entries, shapes and dtypes, all finite."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fl_sim.engine.records import from_record

WEIGHT = "num-examples"


class Rejected(Exception):
    """An upload that cannot be used; the message is a sentence without the hospital's name."""


@dataclass
class Upload:
    """An accepted upload.

    Args:
        hospital: who sent it.
        message: the reply as it came.
        arrays: its arrays, serialised.
        metrics: its metrics; the weight is among them.
        integers: its entries that are not floating point, deserialised.
        averaged: its entries that the server averages itself, deserialised.
    """

    hospital: int
    message: Message
    arrays: ArrayRecord
    metrics: dict[str, int | float]
    integers: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]


def read_upload(
    message: Message, expected: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, int | float]]:
    """Deserialise a reply and check it.

    Args:
        message: a reply.
        expected: the broadcast.

    Returns:
        The uploaded state, in the broadcast's order; further entries, which nobody asked for and
        which are not aggregated; and the scalar metrics.

    Raises:
        Rejected: if the reply is an error, or anything in it is not as expected.
    """
    if message.has_error():
        raise Rejected(_reason(message))
    arrays, metrics = _only_records(message)
    missing = next((name for name in expected if name not in arrays), None)
    if missing:
        raise Rejected(f"the upload lacks the tensor '{missing}'")
    try:
        state = from_record(arrays)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise Rejected(f"the upload cannot be read: {error}") from None
    for name, reference in expected.items():
        problem = tensor_problem(name, state[name], reference)
        if problem:
            raise Rejected(f"the upload's {problem}")
    scalars = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
    weight = scalars.get(WEIGHT)
    if weight is None or not math.isfinite(weight) or weight <= 0:
        raise Rejected(f"the upload's '{WEIGHT}' is {weight}, not a positive number")
    further = {name: tensor for name, tensor in state.items() if name not in expected}
    return {name: state[name] for name in expected}, further, scalars


def tensor_problem(name: str, tensor: torch.Tensor, reference: torch.Tensor) -> str | None:
    """Say what is wrong with a tensor that should be like ``reference`` and finite, if anything."""
    if tensor.shape != reference.shape:
        return f"tensor '{name}' has shape {tuple(tensor.shape)}, not {tuple(reference.shape)}"
    if tensor.dtype != reference.dtype:
        return f"tensor '{name}' is {tensor.dtype}, not {reference.dtype}"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return f"tensor '{name}' has values that are NaN or infinite"
    return None


def explain_failures(failures: Mapping[int, str]) -> str:
    """Put each hospital's reason in one line, hospitals with the same reason together."""
    by_reason: dict[str, list[int]] = {}
    for hospital in sorted(failures):
        by_reason.setdefault(failures[hospital], []).append(hospital)
    return "; ".join(
        f"{_hospitals(numbers)}: {reason.rstrip('.')}" for reason, numbers in by_reason.items()
    )


def _reason(message: Message) -> str:
    """Return an error reply's reason; Flower writes ``<class 'x.Y'>:<'text'>`` for exceptions."""
    reason = message.error.reason or f"Flower's error {message.error.code}"
    match = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'\s*(.*)'>", reason, re.DOTALL)
    return f"{match[1]}: {match[2]}" if match else reason


def _hospitals(numbers: Sequence[int]) -> str:
    return ("hospital " if len(numbers) == 1 else "hospitals ") + ", ".join(map(str, numbers))


def _only_records(message: Message) -> tuple[ArrayRecord, MetricRecord]:
    arrays = list(message.content.array_records.values())
    metrics = list(message.content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise Rejected(
            f"the reply has {len(arrays)} array records and {len(metrics)} metric records, "
            "not one of each"
        )
    return arrays[0], metrics[0]
