"""Removal of what the model file holds beside the network.

Li, Ayache and Delingette, MELBA 2025:032, name further entries of a checkpoint as a place to hide
codes; an owner who knows the architecture can simply not let them out.
"""

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import perturbing
from fl_sim.settings import Settings


@DEFENSES.register("entry_removal", "entries that the network does not have leave the file")
class EntryRemoval(Defense[Settings]):
    """Remove every entry of the model file that the network does not have; it stays as it is."""

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        with perturbing(release) as report:
            release.entries.clear()
        return report
