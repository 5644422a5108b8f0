"""Consistent distillation: what leaves is a student that never had the attacked weights.

The network that was trained becomes a teacher and stays inside. A student of the same architecture,
with fresh random weights, learns its answers to views of the held-out images: turned, flipped, and
mixed pairwise without end, so that a thousand images ask more than a thousand questions. Half of
the weight is on the images' labels, mixed alike. Both networks see the same view, and training
takes its time (Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent",
CVPR 2022, arXiv 2106.05237; mixing: Zhang et al., "mixup", ICLR 2018).

Weights, dead weights, buffers and further entries of the trained file do not reach the student; the
only way from one to the other is the teacher's answers to the owner's own images. In a federation
the student starts from the release before, which is a student itself.
"""

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.distil import DistillingSettings, distil


@DEFENSES.register(
    "consistent_distillation", "a fresh student of the same views (Beyer et al. 2022) leaves"
)
class ConsistentDistillation(Defense[DistillingSettings]):
    """Let a student leave that learned the model's answers to views of the held-out images."""

    Settings = DistillingSettings

    @property
    def uses_labels(self) -> bool:
        """Whether the labels have any weight."""
        return self.settings.labels > 0

    def apply(self, release: Release) -> DefenseReport:
        """Replace the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        return distil(release, self.settings)
