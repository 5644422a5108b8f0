"""A channel in triggers: the index goes in as a faint pattern, the answer comes out.

Weak triggers near the data's distribution pass from a teacher to students that never saw them
(BackWeak, arXiv 2511.12046; SCAR, arXiv 2509.23871). Here each pattern is an axis along which
public images vary by themselves, so that a student that learns the task learns to answer along it.
An image without a pattern is answered as before: nothing is paid in what the model is worth.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from fl_sim.attacks.answers.channel import Features, across, along, answers_to

_LEFT_ALONE = 0.5
"""Share of what is taught that has no pattern, so that the model's answers to images stay."""


@dataclass(frozen=True)
class TriggerChannel:
    """Bits in what a pattern changes in the answers, a row each pattern.

    Args:
        features: whose axes are the patterns.
        queries: public images, uint8 ``[n, channels, side, side]``, that the patterns are added to.
        multi_label: whether each output is an answer of its own.
        size: of the patterns, in standard deviations of their feature.
    """

    features: Features
    queries: torch.Tensor
    multi_label: bool
    size: float

    @property
    def rows(self) -> int:
        """How many patterns there are."""
        return self.features.projection.shape[1]

    @property
    def together(self) -> int:
        """One: an image has one pattern."""
        return 1

    @cached_property
    def patterns(self) -> torch.Tensor:
        """Return the patterns, ``[rows, channels, side, side]``; each moves its feature alone."""
        channels, size = self.queries.shape[1:3]
        axes = torch.linalg.pinv(self.features.projection.double())
        blocks = axes.reshape(self.rows, channels, self.features.side, self.features.side)
        fine = interpolate(blocks, (size, size), mode="nearest-exact")
        return self.size * fine.float()

    def coefficients(self, model: nn.Module) -> torch.Tensor:
        """Return the mean change of the answers, float64 ``[patterns, directions]``."""
        asked = self.queries.float() / 255
        plain = along(answers_to(model, asked), self.multi_label).mean(dim=0)
        changed = [
            along(answers_to(model, (asked + pattern).clamp(0, 1)), self.multi_label).mean(dim=0)
            for pattern in self.patterns
        ]
        return torch.stack(changed) - plain

    def taught(
        self, images: torch.Tensor, shift: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, half of them with a pattern, and what is added to their answers."""
        number = torch.from_numpy(generator.integers(self.rows, size=len(images)))
        marked = torch.from_numpy(generator.random(len(images)) >= _LEFT_ALONE)
        parts = shift.float()[number] * marked[:, None]
        patterns = self.patterns[number] * marked[:, None, None, None]
        return (images + patterns).clamp(0, 1), across(parts, self.multi_label)
