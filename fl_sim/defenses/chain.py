"""Several defences, one after the other."""

from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from fl_sim.component import Component
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import changing
from fl_sim.settings import Settings

_WHERE = "[defense] steps"


def _checked(value: Any) -> Component:
    return Component.of(value, _WHERE).checked(DEFENSES, _WHERE)


class ChainSettings(Settings):
    """Settings of a chain.

    Args:
        steps: registered defences in the order in which they are applied, each by its name or as a
            table of its name and settings.

    Example:
        steps = ["channel_permutation", "lwlrd", {name = "random_bits", bits = 16}]
    """

    steps: tuple[Annotated[Component, BeforeValidator(_checked)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sealed_last(self) -> Self:
        for step in self.steps[:-1]:
            if step.build(DEFENSES, _WHERE).seals:
                raise ValueError(f"nothing can follow '{step.name}', which seals; put it last")
        return self


@DEFENSES.register("chain", "several defences, one after the other")
class Chain(Defense[ChainSettings]):
    """Apply several defences in turn; each has randomness of its own.

    The report has the epochs, learning rates and figures of all steps, their held-out images and
    seconds summed, and the relative change of each parameter from before the first to after the
    last. Its cap is the smallest that a step claims: what comes after a step is a function of what
    came out of it, and cannot tell more of the model than that. For the same reason only the first
    step is given the uploads of a federation, and what one step promises holds for the whole.
    """

    Settings = ChainSettings

    @property
    def seals(self) -> bool:
        """Whether its last step does; none before it may."""
        return self.settings.steps[-1].build(DEFENSES, _WHERE).seals

    @property
    def uses_labels(self) -> bool:
        """Whether any of its steps does."""
        return any(step.build(DEFENSES, _WHERE).uses_labels for step in self.settings.steps)

    @property
    def needs_uploads(self) -> bool:
        """Whether any of its steps does."""
        return any(step.build(DEFENSES, _WHERE).needs_uploads for step in self.settings.steps)

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        reports = []
        with changing(release) as whole:
            for number, step in enumerate(self.settings.steps, start=1):
                defense = step.build(DEFENSES, _WHERE)
                own = replace(
                    release,
                    stream=release.stream.at("step", number),
                    uploads=release.uploads if number == 1 else None,
                )
                report = defense.apply(own)
                reports.append(report)
                whole.epochs += report.epochs
                whole.images += report.images
                whole.figures |= report.figures
                whole.learning_rates |= {
                    f"{number}:{step.name}/{layer}": rate
                    for layer, rate in report.learning_rates.items()
                }
        claims = [report.cap_bits for report in reports if report.cap_bits is not None]
        whole.cap_bits = min(claims, default=None)
        whole.zcdp = min((r.zcdp for r in reports if r.zcdp is not None), default=None)
        whole.sealed = reports[-1].sealed
        whole.seconds = sum(report.seconds for report in reports)
        return whole
