"""State dictionaries to and from Flower's records, bit for bit and with their dtypes."""

import io
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.common.constant import SType
from numpy.typing import NDArray

from fl_sim.faults import cause, first_line

BEFORE_DOOR, DOOR = "before-door", "door"
"""Records of a simulated hospital's reply: what a malicious one wanted to send, for those who
measure it, and what its door says."""


def to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Serialise a state dictionary; the record shares no memory with it."""
    return ArrayRecord({name: Array(as_numpy(tensor)) for name, tensor in state.items()})


def from_record(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Deserialise a record into new CPU tensors; the record is left as it is.

    Raises:
        ValueError: if an array's bytes are not what they say, or are of a kind that torch does not
            know; no more memory is asked for than the bytes take.
    """
    return {name: _tensor(name, array) for name, array in record.items()}


def _tensor(name: str, array: Array) -> torch.Tensor:
    try:
        return torch.from_numpy(_read(array))
    except Exception as error:  # NumPy reads headers with Python's own parser
        raise ValueError(f"'{first_line(name)}' is no array: {cause(error)}") from error


def _read(array: Array) -> NDArray[np.generic]:
    """Read what ``numpy.save`` wrote, and nothing that is longer or shorter than it says."""
    if array.stype != SType.NUMPY:
        raise ValueError(f"it is serialised as {array.stype!r}, not as {SType.NUMPY!r}")
    stream = io.BytesIO(array.data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it is not in version 1.0 of NumPy's format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    start = stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if math.prod(shape) * dtype.itemsize != len(array.data) - start:
        raise ValueError(f"{len(array.data) - start} bytes are no {dtype} of shape {shape}")
    if (array.dtype, tuple(array.shape)) != (str(dtype), shape):
        raise ValueError(f"it says {array.dtype} of shape {array.shape}, and is {dtype} {shape}")
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.ndarray(shape, dtype, buffer=array.data, offset=start, order=order).copy()


def as_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """Return a tensor as a contiguous CPU array; zero-dimensional ones stay so."""
    return np.asarray(tensor.detach().cpu().contiguous().numpy())
