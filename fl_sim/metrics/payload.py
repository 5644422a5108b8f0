"""Payload survival: what of the bits or values that were sent arrived.

Images recovered intact, damaged or lost, and how wrong the raw channel is, in all and by tensor.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.carriers.base import Payload, relative_error, wrong_bits
from fl_sim.metrics.channel import channel_bits
from fl_sim.metrics.measure import Measured
from fl_sim.metrics.vocabulary import HIGHER_LEAKS, LOWER_LEAKS, METRICS, Metric
from fl_sim.payload.reading import Reading, Status
from fl_sim.words import NO_EXTRACTION

COUNTED = {
    Status.INTACT: "images_intact",
    Status.DAMAGED: "images_damaged",
    Status.LOST: "images_lost",
}
"""What of a payload's images is counted, by what became of them."""

_PIECE = 32
_NOTHING = np.zeros(0, np.uint8)


def bit_error_rate(sent: NDArray[np.uint8], arrived: NDArray[np.uint8]) -> float:
    """Return the share of wrong bits; what did not arrive at all counts as wrong by half.

    Args:
        sent: bytes ``[n]``.
        arrived: bytes ``[m]``; those beyond ``n`` are ignored.
    """
    if len(sent) == 0:
        return 0.0
    both = min(len(sent), len(arrived))
    wrong = wrong_bits(sent[:both], arrived[:both])
    return (wrong + 4.0 * (len(sent) - both)) / (8.0 * len(sent))


def bytes_delivered(sent: NDArray[np.uint8], arrived: NDArray[np.uint8]) -> int:
    """Return how many bytes arrived in pieces of 32 without a wrong bit.

    Whole pieces, since one byte in 256 of pure noise is right. The last piece may be shorter.

    Args:
        sent: bytes ``[n]``.
        arrived: bytes ``[m]``; those beyond ``n`` are ignored.
    """
    both = min(len(sent), len(arrived))
    wrong = np.ones(-(-len(sent) // _PIECE) * _PIECE, np.bool_)
    wrong[:both] = sent[:both] != arrived[:both]
    wrong[len(sent) :] = False
    sizes = np.full(len(wrong) // _PIECE, _PIECE)
    if len(sizes):
        sizes[-1] = len(sent) - _PIECE * (len(sizes) - 1)
    return int(sizes[~wrong.reshape(-1, _PIECE).any(axis=1)].sum())


def value_error(sent: NDArray[np.float32], arrived: NDArray[np.float32]) -> float:
    """Return the root mean square error over the root mean square of what was sent.

    Values that did not arrive, or are not finite, count as zero received.
    """
    received = np.zeros(len(sent), dtype=np.float32)
    both = min(len(sent), len(arrived))
    received[:both] = arrived[:both]
    return relative_error(sent, received)


def measure_payload(
    reading: Reading,
    sent: Payload | None,
    recovered: torch.Tensor,
    original: torch.Tensor | None,
    corrected: Payload | None = None,
) -> list[Measured]:
    """Measure what arrived of a payload.

    Args:
        reading: what a receiver read.
        sent: what was sent, or ``None`` where that is not known.
        recovered: the images he got, ``[n, channels, height, width]``; an image with a value that
            is not finite is lost.
        original: the images an undisturbed receiver gets, of the same shape, where they are known.
            They tell what checksums do not: without them, an image without checksum is damaged.
        corrected: the payload inside of what was sent, where that was coded against errors.

    Returns:
        ``images_intact``, ``images_damaged`` and ``images_lost`` (they sum to n); where ``sent`` is
        known ``value_error``, or ``bit_error_rate`` and ``bytes_delivered`` (of the payload, after
        error correction); with error correction ``bit_error_rate_corrected``; and where bits were
        read softly ``channel_bytes``. Of a payload in
        parts also ``images_intact[<part>]`` and so on.
    """
    status = _status(reading, recovered, original)
    rows = _counts(status)
    first = 0
    for part, images in reading.parts:
        own = _counts(status[first : first + images])
        rows |= {f"{metric}[{part}]": count for metric, count in own.items()}
        first += images
    if sent is not None and sent.dtype == np.uint8:
        rows["bit_error_rate"] = bit_error_rate(sent.astype(np.uint8), _bytes(reading.content))
        inside, arrived = sent.astype(np.uint8), _bytes(reading.content)
        if corrected is not None:
            inside = corrected.astype(np.uint8)
            arrived = _bytes(_NOTHING if reading.corrected is None else reading.corrected)
            rows["bit_error_rate_corrected"] = bit_error_rate(inside, arrived)
        rows["bytes_delivered"] = float(bytes_delivered(inside, arrived))
        if reading.soft is not None:
            rows["channel_bytes"] = channel_bits(sent.astype(np.uint8), reading.soft) / 8
    elif sent is not None:
        rows["value_error"] = value_error(sent.astype(np.float32), _values(reading.content))
    return [Measured(NO_EXTRACTION, metric, value) for metric, value in rows.items()]


def _counts(status: NDArray[np.int8]) -> dict[str, float]:
    return {name: float((status == value).sum()) for value, name in COUNTED.items()}


def _status(
    reading: Reading, recovered: torch.Tensor, original: torch.Tensor | None
) -> NDArray[np.int8]:
    if reading.status is not None:
        return reading.status
    legible = recovered.flatten(1).isfinite().all(dim=1)
    same = torch.zeros_like(legible)
    if original is not None:
        same = (recovered == original).flatten(1).all(dim=1)
    status = torch.where(same, int(Status.INTACT), int(Status.DAMAGED))
    return torch.where(legible, status, int(Status.LOST)).numpy().astype(np.int8)


def _bytes(content: Payload) -> NDArray[np.uint8]:
    return content.astype(np.uint8) if content.dtype == np.uint8 else np.zeros(0, np.uint8)


def _values(content: Payload) -> NDArray[np.float32]:
    return np.zeros(0, np.float32) if content.dtype == np.uint8 else content.astype(np.float32)


METRICS.register("images_intact", "hidden images that arrived bit for bit")(
    Metric(
        "Intact",
        "payload",
        HIGHER_LEAKS,
        format="count",
        range=(0.0, math.inf),
        trials="stolen_images",
        heading="images\nintact",
        order=10,
    )
)
METRICS.register("images_damaged", "hidden images that arrived with errors")(
    Metric(
        "Damaged",
        "payload",
        format="count",
        range=(0.0, math.inf),
        trials="stolen_images",
        heading="\ndamaged",
        shown=("run",),
        order=11,
    )
)
METRICS.register("images_lost", "hidden images that did not arrive")(
    Metric(
        "Lost",
        "payload",
        LOWER_LEAKS,
        format="count",
        range=(0.0, math.inf),
        trials="stolen_images",
        heading="\nlost",
        shown=("run",),
        order=12,
    )
)
METRICS.register("bit_error_rate", "share of wrong bits of what was sent")(
    Metric(
        "Wrong bits",
        "payload",
        LOWER_LEAKS,
        format="percent",
        range=(0.0, 1.0),
        shown=("summary",),
        order=20,
    )
)
METRICS.register("bit_error_rate_corrected", "share of wrong bits after error correction")(
    Metric(
        "Wrong bits, corrected",
        "payload",
        LOWER_LEAKS,
        format="percent",
        range=(0.0, 1.0),
        shown=(),
        order=21,
    )
)
METRICS.register("value_error", "root mean square error of values over their root mean square")(
    Metric(
        "Relative error of values",
        "payload",
        LOWER_LEAKS,
        range=(0.0, math.inf),
        shown=(),
        order=22,
    )
)
METRICS.register("bytes_delivered", "bytes that arrived in pieces of 32 without a wrong bit")(
    Metric(
        "Bytes delivered",
        "payload",
        HIGHER_LEAKS,
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=23,
    )
)
METRICS.register("carrier_error", "error of the carrier, by tensor and by bit")(
    Metric(
        "Carrier error",
        "payload",
        LOWER_LEAKS,
        range=(0.0, math.inf),
        shown=(),
        order=30,
    )
)
