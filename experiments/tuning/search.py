"""Which settings are tried: the same number for every defence, its own defaults first."""

from typing import Literal

from experiments.tuning.space import Space, Values
from fl_sim.errors import FlSimError
from fl_sim.randomness import numpy_generator

Search = Literal["random", "grid"]
_DRAWS = 64
"""How many points are drawn for each setting that is wanted, before a space is called too small."""


def settings_tried(space: Space, search: Search, budget: int, seed: int) -> list[Values]:
    """Return the settings that are tried of a defence.

    Args:
        space: what may be tried.
        search: ``"random"``: scrambled Sobol points (Owen, 1998), which fill a space more evenly
            than independent draws; ``"grid"``: every combination.
        budget: how many settings, the first included.
        seed: of the draws; a defence's draws do not depend on the others.

    Returns:
        ``budget`` different settings; the first are the defaults, with what the defence fixes.

    Raises:
        FlSimError: if there are not as many, or with ``"grid"`` more.
    """
    found = [space.first]
    if search == "grid":
        found += [one for one in space.grid() if one != space.first]
        if len(found) != budget:
            raise FlSimError(
                f"{space.where} has {len(found)} settings, its first one included, but the budget "
                f"of every defence is {budget}; change its lists or the budget."
            )
        return found
    from scipy.stats import qmc

    generator = numpy_generator(seed, "tuning", space.where)
    sobol = qmc.Sobol(len(space.keys), scramble=True, seed=generator)
    refused = ""
    for _ in range(_DRAWS * budget):
        if len(found) == budget:
            return found
        try:
            settings = space.at(sobol.random(1)[0])
        except FlSimError as error:  # such as a lowest rate above the highest
            refused = f" The last that could not be used: {error}"
            continue
        if settings not in found:
            found.append(settings)
    if len(found) == budget:
        return found
    raise FlSimError(
        f"{space.where} has only {len(found)} different settings to try, but the budget of every "
        f"defence is {budget}; widen its ranges or lower the budget.{refused}"
    )
