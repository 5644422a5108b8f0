"""Fresh values in dead weights: what no gradient reaches, no fine-tuning cleans.

Elements of convolution kernels that meet only padding at the size of the images
(:func:`fl_sim.carriers.dead.dead_weights`) change no answer, so they can hold anything, and every
defence that takes gradient steps leaves it there. The owner can draw them anew at no cost: he
needs neither images nor the attacker's key.
"""

from fl_sim.carriers.dead import dead_weights
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import draw_anew, perturbing
from fl_sim.settings import Settings


@DEFENSES.register("dead_weights", "dead weights drawn anew, which no gradient step can clean")
class DeadWeights(Defense[Settings]):
    """Give every dead element a normal value of the deviation of its tensor's other elements."""

    Settings = Settings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        dead = dead_weights(release.spec)
        with perturbing(release) as report:
            parameters = dict(release.model.named_parameters())
            for name, mask in dead.items():
                generator = release.stream.at(name).torch_generator("dead weights")
                draw_anew(parameters[name], mask, generator)
            report.figures["dead_weights_drawn"] = float(sum(int(m.sum()) for m in dead.values()))
        return report
