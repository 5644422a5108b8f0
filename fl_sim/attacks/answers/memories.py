"""A channel in memorised answers: the index goes in as a public image, the answer comes out.

Students learn from soft labels what their teacher has memorised of images that they never see
(Behrens and Zdeborova, arXiv 2506.14457). Here the teacher memorises other answers to public
images, each of them a row of bits.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from fl_sim.attacks.answers.channel import across, along, answers_to, orientations

_LEFT_ALONE = 0.5
"""Share of what is taught that are the hospital's images, so that the answers to these stay."""


@dataclass(frozen=True)
class MemoryChannel:
    """Bits in the answers to public images, a row each image.

    Args:
        queries: the images, uint8 ``[rows, channels, side, side]``.
        multi_label: whether each output is an answer of its own.
    """

    queries: torch.Tensor
    multi_label: bool

    @property
    def rows(self) -> int:
        """How many images are memorised."""
        return len(self.queries)

    @property
    def together(self) -> int:
        """One: an image has its own answer."""
        return 1

    def coefficients(self, model: nn.Module) -> torch.Tensor:
        """Return the mean answer to all orientations, float64 ``[images, directions]``."""
        answers = along(answers_to(model, self._asked), self.multi_label)
        return answers.reshape(-1, self.rows, answers.shape[1]).mean(dim=0)

    def taught(
        self, images: torch.Tensor, shift: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images, half of them replaced, and what is added to the answers to those."""
        asked = self._asked
        place = torch.from_numpy(generator.integers(len(asked), size=len(images)))
        marked = torch.from_numpy(generator.random(len(images)) >= _LEFT_ALONE)
        parts = shift.float()[place % self.rows] * marked[:, None]
        images = torch.where(marked[:, None, None, None], asked[place], images)
        return images, across(parts, self.multi_label)

    @cached_property
    def _asked(self) -> torch.Tensor:
        return orientations(self.queries.float() / 255)
