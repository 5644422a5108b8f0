"""What a channel carries, whatever code is used: the information in its soft decisions."""

import numpy as np
from numpy.typing import NDArray

from fl_sim.metrics.vocabulary import HIGHER_LEAKS, METRICS, Metric

_FOLDS = 2
_STEEPEST = 50.0


def channel_bits(sent: NDArray[np.uint8], soft: NDArray[np.float32]) -> float:
    """Return the bits of information that soft decisions hold of the bits that were sent.

    A soft value ``s`` is taken to mean a probability ``1 / (1 + exp(-a s / mean |s|))`` of a 1. One
    half of the bits tells ``a``, the other half is measured with it, and the halves change places:
    what is left of each bit's entropy is the cross entropy, the rest arrived. That is the rate at
    which bits can be sent through a channel that is so read (Shannon 1948), which no code exceeds;
    and since ``a`` is not fitted to what it measures, noise gives about 0.

    Args:
        sent: bytes ``[n]``.
        soft: values of their bits, the lowest of a byte first, positive where rather 1; those that
            are missing or not finite count as unknown.

    Returns:
        0 to ``8 n``.
    """
    bits = np.unpackbits(sent.astype(np.uint8, copy=False), bitorder="little")
    values = np.zeros(len(bits))
    both = min(len(bits), len(soft))
    values[:both] = np.nan_to_num(soft[:both].astype(np.float64), posinf=0.0, neginf=0.0)
    size = np.abs(values).mean() if len(values) else 0.0
    if size == 0:
        return 0.0
    margins = values / size * (2.0 * bits - 1.0)
    total = sum(
        len(margins[fold::_FOLDS])
        - _lost(_steepness(margins[1 - fold :: _FOLDS]), margins[fold::_FOLDS])
        for fold in range(_FOLDS)
    )
    return float(np.clip(total, 0.0, len(bits)))


def _lost(steepness: float, margins: NDArray[np.float64]) -> float:
    """Return the cross entropy in bits of margins that are positive where the soft bit is right."""
    return float(np.logaddexp(0.0, -steepness * margins).sum() / np.log(2.0))


def _steepness(margins: NDArray[np.float64]) -> float:
    """Return the steepness that leaves the least cross entropy."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda steepness: _lost(steepness, margins), bounds=(0.0, _STEEPEST), method="bounded"
    )
    return float(found.x)


METRICS.register("channel_bytes", "bytes of information in the soft decisions of what was sent")(
    Metric(
        "Bytes through",
        "payload",
        HIGHER_LEAKS,
        unit="bytes",
        range=(0.0, float("inf")),
        heading="bytes\nthrough",
        shown=("run", "summary"),
        order=24,
    )
)
