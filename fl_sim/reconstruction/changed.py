"""Heads that something was done to before they left: averaged in a federation, or distilled.

An attacker who knows what is done does it to his shadow heads, too.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.reconstruction.population import Population

_RIDGE = 1e-6


@dataclass(frozen=True)
class Averaged(Population):
    """Means of so many heads each, as a server makes them of hospitals' uploads (FedAvg).

    Args:
        heads: single ones; those that are left over count no more.
        together: how many are averaged.
    """

    heads: Population
    together: int

    @property
    def rows(self) -> NDArray[np.int32]:
        """Images of all heads of a mean, class by class, ``[means, together * N]``."""
        means, classes = len(self.heads) // self.together, self.classes
        own = self.heads.rows[: means * self.together]
        by_class = own.reshape(means, self.together, classes, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(by_class.reshape(means, -1))

    @property
    def classes(self) -> int:
        """Rows of a head."""
        return self.heads.classes

    @property
    def inputs(self) -> int:
        """Entries of a row."""
        return self.heads.inputs

    def __len__(self) -> int:
        return len(self.heads) // self.together

    def weights(self, first: int, last: int) -> torch.Tensor:
        """Return means ``first`` to ``last - 1``, ``[means, classes, inputs]``."""
        single = self.heads.weights(first * self.together, last * self.together)
        return single.unflatten(0, (last - first, self.together)).mean(dim=1)


@dataclass(frozen=True)
class Distilled(Population):
    """Students of so many heads: each has only seen its teacher's logits on the same images.

    Args:
        heads: teachers.
        map: of :func:`distillation`.
    """

    heads: Population
    map: torch.Tensor

    @property
    def rows(self) -> NDArray[np.int32]:
        """Images that the teachers were trained on."""
        return self.heads.rows

    @property
    def classes(self) -> int:
        """Rows of a head."""
        return self.heads.classes

    @property
    def inputs(self) -> int:
        """Entries of a row."""
        return self.heads.inputs

    def weights(self, first: int, last: int) -> torch.Tensor:
        """Return students ``first`` to ``last - 1``, ``[heads, classes, inputs]``."""
        return self.heads.weights(first, last).float() @ self.map


def distillation(known: torch.Tensor) -> torch.Tensor:
    """Return the map ``[inputs, inputs]`` from a linear teacher's row to its student's.

    The student is the least head by its norm among those that answer these images with the
    teacher's logits, as nearly as can be (logits are what Ba and Caruana, NeurIPS 2014, distil
    on): gradient descent from zero on them ends there. It is the teacher's part in the span of
    their features, and with as many independent images as features the teacher itself.

    Args:
        known: ``[images, inputs]``, features as from
            :func:`fl_sim.reconstruction.shadows.with_ones`.
    """
    wide = known.double()
    products = wide @ wide.T
    ridge = _RIDGE * float(products.diagonal().mean())
    products += ridge * torch.eye(len(products), dtype=torch.float64)
    return (wide.T @ torch.linalg.solve(products, wide)).float()
