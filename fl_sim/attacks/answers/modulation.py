"""How a coefficient means a bit.

What a model answers by itself makes its coefficients large, and the receiver does not know them;
the sender does. With two interleaved lattices he moves each one to the nearest point of the lattice
that stands for its bit, by half a period at most: what was there before costs power, but disturbs
nothing. That is writing on dirty paper (Costa, "Writing on dirty paper", IEEE Transactions on
Information Theory 29, 1983; Chen and Wornell, "Quantization index modulation", the same 47, 2001).
"""

import math
from dataclasses import dataclass

import torch

from fl_sim.attacks.answers.settings import Modulation
from fl_sim.coding.base import Soft
from fl_sim.randomness import torch_generator

GAIN = 0.45
"""What arrives of a shift, as reckoned with before any rehearsal: measured with a small CNN."""


@dataclass(frozen=True)
class Modulator:
    """Places coefficients for bits, and reads bits from coefficients.

    Args:
        kind: see :class:`fl_sim.attacks.answers.settings.AnswersSettings`.
        size: the lattices' period, or the size that a coefficient of the right sign has at least.
        seed: of the lattices' secret offsets, one a coefficient.
    """

    kind: Modulation
    size: float
    seed: int

    def place(self, coefficients: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Return the nearest coefficients that mean these bits.

        Args:
            coefficients: as they are by themselves, float64 ``[n]``.
            bits: 0 or 1, ``[n]``.
        """
        if self.kind == "sign":
            signs = 2.0 * bits.double() - 1.0
            return signs * (signs * coefficients).clamp(min=self.size)
        offset = self._offsets(len(bits)) + bits.double() * self.size / 2
        return offset + ((coefficients - offset) / self.size).round() * self.size

    def soft(self, coefficients: torch.Tensor) -> Soft:
        """Return soft bits ``[n]``; see :data:`fl_sim.coding.base.Soft`."""
        values = coefficients / self.size
        if self.kind == "lattice":
            # What a Gaussian disturbance leaves of a point on a circle is about its cosine.
            turns = (coefficients - self._offsets(len(coefficients))) / self.size
            values = -torch.cos(2 * math.pi * turns)
        result: Soft = values.float().numpy()
        return result

    def _offsets(self, count: int) -> torch.Tensor:
        generator = torch_generator(self.seed, "lattice offsets")
        return torch.rand(count, generator=generator, dtype=torch.float64) * self.size


def size_for(kind: Modulation, strength: float, features: int) -> float:
    """Return a modulator's size that adds ``strength`` to logits, as a root mean square.

    Args:
        kind: of modulation.
        strength: see :class:`fl_sim.attacks.answers.settings.AnswersSettings`.
        features: over which it is shared out.
    """
    each = strength * GAIN / math.sqrt(features)
    return each if kind == "sign" else each * math.sqrt(12)
