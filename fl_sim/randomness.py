"""Randomness derived from (seed, purpose, round, hospital, ...): no global seed, no draw order.

Two draws for different purposes never share a stream, and a draw does not depend on what was drawn
before it, so any round of any hospital can be reproduced alone, in any process.
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *path: int | str) -> int:
    """Return a 63-bit seed for one purpose, the same on every machine.

    Args:
        seed: the scenario's seed.
        purpose: what is drawn, for example ``"partition"``.
        path: round, hospital or whatever else tells this draw from its siblings.
    """
    text = "\x1f".join([str(seed), purpose, *map(str, path)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(seed: int, purpose: str, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for one purpose; see :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, *path))


def torch_generator(seed: int, purpose: str, *path: int | str) -> torch.Generator:
    """Return a CPU torch generator for one purpose; see :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *path))


@contextmanager
def seeded(seed: int, purpose: str, *path: int | str) -> Iterator[None]:
    """Run a block with torch's global generators seeded for one purpose, then restore them.

    For code that can only draw from the global generator: weight initialisation and dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, purpose, *path))
        yield


@dataclass(frozen=True)
class Stream:
    """Where a piece of work derives its randomness from: a seed and a place in the study.

    Args:
        seed: the scenario's seed.
        path: hospital, round or whatever else tells this work from its siblings.
    """

    seed: int
    path: tuple[int | str, ...] = ()

    def at(self, *path: int | str) -> "Stream":
        """Return the stream of a part of this work."""
        return Stream(self.seed, (*self.path, *path))

    @classmethod
    def secret(cls) -> "Stream":
        """Return a stream that nobody knows, from the operating system; it cannot be repeated."""
        return cls(secrets.randbits(63))

    def numpy(self, purpose: str) -> np.random.Generator:
        """Return a NumPy generator for one purpose."""
        return numpy_generator(self.seed, purpose, *self.path)

    def torch_generator(self, purpose: str) -> torch.Generator:
        """Return a CPU torch generator for one purpose."""
        return torch_generator(self.seed, purpose, *self.path)

    def seeded(self, purpose: str) -> AbstractContextManager[None]:
        """Return a block in which torch's global generators are seeded for one purpose."""
        return seeded(self.seed, purpose, *self.path)
