"""Every bit several times: the weakest code, and the only one that works below rate 0.1."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.coding.base import CODES, Bytes, Code, Soft, hard_bytes
from fl_sim.settings import Settings


class RepetitionSettings(Settings):
    """Settings of repetition.

    Args:
        times: how often each bit is sent.
    """

    times: int = Field(3, ge=2, le=1000)


@CODES.register("repetition", "every bit several times")
class Repetition(Code[RepetitionSettings]):
    """Every bit several times; the sum of soft values decides. It notices no failure but a tie."""

    Settings = RepetitionSettings

    @property
    def block(self) -> int:
        """See :class:`Code`."""
        return 256

    def coded(self, length: int) -> int:
        """See :class:`Code`."""
        return self.settings.times * length

    def encode_blocks(self, data: Bytes) -> Bytes:
        """See :class:`Code`."""
        return np.tile(data, (1, self.settings.times))

    def decode_blocks(self, soft: Soft, length: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """See :class:`Code`."""
        total = soft.reshape(len(soft), self.settings.times, 8 * length).sum(axis=1)
        return hard_bytes(total).reshape(len(soft), length), (total == 0).any(axis=1)
