"""No code: bytes as they are."""

import numpy as np
from numpy.typing import NDArray

from fl_sim.coding.base import CODES, Bytes, Code, Soft, hard_bytes
from fl_sim.settings import Settings


@CODES.register("none", "no error correction")
class NoCode(Code[Settings]):
    """Bytes as they are; nothing is corrected and no failure noticed."""

    symbol_bits = 8

    @property
    def block(self) -> int:
        """See :class:`Code`."""
        return 1024

    def coded(self, length: int) -> int:
        """See :class:`Code`."""
        return length

    def encode_blocks(self, data: Bytes) -> Bytes:
        """See :class:`Code`."""
        return data

    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """See :class:`Code`."""
        return hard_bytes(soft).reshape(len(soft), length), np.zeros(len(soft), np.bool_)
