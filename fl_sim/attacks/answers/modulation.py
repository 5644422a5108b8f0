"""How a coefficient means a bit.

What a model answers by itself makes its coefficients large, and the receiver does not know them;
the sender does. With two interleaved lattices he moves each one towards the nearest point of the
lattice that stands for its bit, by half a period at most: what was there before costs power, but
disturbs nothing. That is writing on dirty paper (Costa, "Writing on dirty paper", IEEE Transactions
on Information Theory 29, 1983). Not all the way: what is left to the point disturbs like noise, but
the lattices can be wider apart for the same power (Chen and Wornell, "Quantization index
modulation", the same 47, 2001, section V-B; the best share is that of signal in signal and noise).
"""

import math
from dataclasses import dataclass

import torch

from fl_sim.attacks.answers.settings import Modulation
from fl_sim.coding.base import Soft
from fl_sim.randomness import torch_generator

GAIN = 0.55
"""What arrives of a shift of the first feature, as reckoned with before any rehearsal: measured
with a small CNN."""


@dataclass(frozen=True)
class Modulator:
    """Places coefficients for bits, and reads bits from coefficients.

    Args:
        kind: see :class:`fl_sim.attacks.answers.settings.AnswersSettings`.
        sizes: of each coefficient: the lattices' period, or what it has at least of the right sign,
            float64 ``[n]``.
        seed: of the lattices' secret offsets, one a coefficient.
        share: of the way to the nearest point that a coefficient is moved, up to 1.
    """

    kind: Modulation
    sizes: torch.Tensor
    seed: int
    share: float = 1.0

    def place(self, coefficients: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        """Return coefficients that mean these bits, near those that there are.

        Args:
            coefficients: as they are by themselves, float64 ``[n]``, the first ones.
            bits: 0 or 1, ``[n]``.
        """
        sizes = self.sizes[: len(bits)]
        if self.kind == "sign":
            signs = 2.0 * bits.double() - 1.0
            return signs * torch.maximum(signs * coefficients, sizes)
        offset = self._offsets(len(bits)) + bits.double() * sizes / 2
        nearest = offset + ((coefficients - offset) / sizes).round() * sizes
        return torch.lerp(coefficients, nearest, self.share)

    def soft(self, coefficients: torch.Tensor) -> Soft:
        """Return soft bits of the first coefficients; see :data:`fl_sim.coding.base.Soft`."""
        values = coefficients / self.sizes[: len(coefficients)]
        if self.kind == "lattice":
            # What a Gaussian disturbance leaves of a point on a circle is about its cosine.
            offsets = self._offsets(len(coefficients)) / self.sizes[: len(coefficients)]
            values = -torch.cos(2 * math.pi * (values - offsets))
        result: Soft = values.float().numpy()
        return result

    def _offsets(self, count: int) -> torch.Tensor:
        generator = torch_generator(self.seed, "lattice offsets")
        return torch.rand(count, generator=generator, dtype=torch.float64) * self.sizes[:count]


def expected_gains(features: int, last: float) -> torch.Tensor:
    """Return what arrives of a shift of each feature before anything is known, float64 ``[n]``.

    Args:
        features: how many, the strongest first.
        last: of the last one, over that of the first.
    """
    return GAIN * last ** torch.linspace(0, 1, features, dtype=torch.float64)


def sizes_for(
    kind: Modulation,
    strength: float,
    gains: torch.Tensor,
    directions: int,
    share: float,
    together: int,
) -> torch.Tensor:
    """Return a modulator's sizes that add ``strength`` to logits, as a root mean square.

    All coefficients take equal power of what is handed over. That is best where noise grows with
    gain, as a student's does.

    Args:
        kind: of modulation.
        strength: see :class:`fl_sim.attacks.answers.settings.AnswersSettings`.
        gains: of each feature.
        directions: coefficients of each feature.
        share: see :class:`Modulator`.
        together: coefficients, in each direction, that are in the answer to one image.
    """
    each = strength * gains.repeat_interleave(directions) / math.sqrt(together)
    return each if kind == "sign" else each * math.sqrt(12) / share
