"""State dictionaries to and from Flower's records, bit for bit and with their dtypes."""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray


def to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Serialise a state dictionary; the record shares no memory with it."""
    return ArrayRecord({name: Array(as_numpy(tensor)) for name, tensor in state.items()})


def from_record(record: ArrayRecord) -> dict[str, torch.Tensor]:
    """Deserialise a record into new CPU tensors; the record is left as it is.

    Raises:
        ValueError: if an array's bytes are not what they say.
        TypeError: if an array has a dtype that torch does not know.
    """
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def as_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    """Return a tensor as a contiguous CPU array; zero-dimensional ones stay so."""
    return np.asarray(tensor.detach().cpu().contiguous().numpy())
