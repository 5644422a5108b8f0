"""Parity images: from any ``k`` of a group's ``k + m`` codes, all ``k`` images.

A Reed-Solomon erasure code with a Cauchy matrix (Bloemer et al. 1995) over groups of images. Codes
of a group are padded to the longest one; each starts with its length, which is protected along.
Groups are interleaved (image ``i`` is in group ``i`` modulo their number), so that neighbours in a
payload are lost to different groups.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fl_sim.coding.gf256 import INV, matmul, solve
from fl_sim.settings import Settings

Bytes = NDArray[np.uint8]
_LENGTH_BYTES = 4


class ErasureSettings(Settings):
    """Settings of parity images.

    Args:
        data: images in a group.
        parity: parity images for each group; as many of its images may be lost.
    """

    data: int = Field(16, ge=1)
    parity: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "ErasureSettings":
        if self.data + self.parity > 256:
            raise ValueError("data and parity together are at most 256")
        return self

    def pieces(self, images: int) -> int:
        """Return how many parity codes ``images`` images have."""
        return self.parity * self._groups(images)

    def sizes(self, lengths: Sequence[int]) -> list[int]:
        """Return the lengths in bytes of the parity codes for codes of these lengths."""
        groups = self._groups(len(lengths))
        longest = [max(lengths[group::groups], default=0) for group in range(groups)]
        return [_LENGTH_BYTES + longest[i % groups] for i in range(self.parity * groups)]

    def protect(self, codes: Sequence[bytes]) -> list[bytes]:
        """Return the parity codes; number ``i`` belongs to group ``i`` modulo their number."""
        groups = self._groups(len(codes))
        result = [b""] * (self.parity * groups)
        for group in range(groups):
            members = codes[group::groups]
            width = _LENGTH_BYTES + max(map(len, members))
            rows = np.stack([_padded(code, width) for code in members])
            for number, row in enumerate(matmul(self._matrix(len(members)), rows)):
                result[number * groups + group] = row.tobytes()
        return result

    def recover(
        self, codes: Sequence[bytes | None], parity: Sequence[bytes | None]
    ) -> list[bytes | None]:
        """Return codes with those that were lost, where enough of their group arrived.

        Args:
            codes: of the images; ``None`` where lost or known to be damaged.
            parity: what arrived of :meth:`protect`'s result.
        """
        groups = self._groups(len(codes))
        result = list(codes)
        for group in range(groups):
            members, extra = codes[group::groups], parity[group::groups]
            for place, code in self._mended(members, extra).items():
                result[place * groups + group] = code
        return result

    def _mended(
        self, members: Sequence[bytes | None], extra: Sequence[bytes | None]
    ) -> dict[int, bytes]:
        lost = [i for i, code in enumerate(members) if code is None]
        widths = [len(code) for code in extra if code is not None]
        rows = [i for i, code in enumerate(extra) if code is not None and len(code) == widths[0]]
        rows = rows[: len(lost)]
        known = [i for i, code in enumerate(members) if code is not None]
        fits = widths and all(len(members[i] or b"") <= widths[0] - _LENGTH_BYTES for i in known)
        if not lost or len(rows) < len(lost) or not fits:
            return {}
        matrix = self._matrix(len(members))[rows]
        sums = np.stack([np.frombuffer(extra[i] or b"", np.uint8) for i in rows])
        if known:
            present = np.stack([_padded(members[i] or b"", widths[0]) for i in known])
            sums = sums ^ matmul(matrix[:, known], present)
        found = solve(matrix[:, lost], sums)
        codes = {place: _unpadded(row) for place, row in zip(lost, found, strict=True)}
        return {place: code for place, code in codes.items() if code is not None}

    def _groups(self, images: int) -> int:
        return -(-images // self.data)

    def _matrix(self, members: int) -> Bytes:
        """Return a Cauchy matrix ``[parity, members]``: every square part of it is regular."""
        rows = np.arange(self.parity, dtype=np.uint8)
        columns = np.arange(self.parity, self.parity + members).astype(np.uint8)
        return INV[rows[:, None] ^ columns[None, :]]


def _padded(code: bytes, width: int) -> Bytes:
    row = np.zeros(width, np.uint8)
    content = len(code).to_bytes(_LENGTH_BYTES, "little") + code
    row[: len(content)] = np.frombuffer(content, np.uint8)
    return row


def _unpadded(row: Bytes) -> bytes | None:
    content = row.tobytes()
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    rest = content[_LENGTH_BYTES:]
    # What is not zero after the code betrays a parity code that was wrong unnoticed.
    return rest[:length] if length <= len(rest) and not any(rest[length:]) else None
