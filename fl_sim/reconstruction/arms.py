"""The arms that a sealed head is compared in: whose base, which head leaves, what an attacker sees.

What was trained on few images is a head on a frozen base. Each arm lets it leave in another way,
and in each the attacker knows what is done and does it to his shadow heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_sim.errors import unknown_name
from fl_sim.privacy import DpSettings
from fl_sim.reconstruction.few_shot import FewShotSettings
from fl_sim.reconstruction.private import EXPONENT

CLEAR = "clear head"


@dataclass(frozen=True)
class Arm:
    """A way in which a head leaves.

    Args:
        base: ``"trusted"`` (by its hash) or ``"stranger's"``, in which he may have hidden images.
        sealed: whether the head leaves encrypted; what is left of it is then nothing, or, where
            ``settings`` say so, decisions.
        settings: keys of :class:`fl_sim.reconstruction.few_shot.FewShotSettings`.
        epsilon: of differentially private training; ``None`` for none.
    """

    base: Literal["trusted", "stranger's"] = "trusted"
    sealed: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    epsilon: float | None = None

    @property
    def without_head(self) -> bool:
        """Whether the attacker has nothing of the head, neither weights nor decisions."""
        return self.sealed and "sees" not in self.settings


ARMS: dict[str, Arm] = {
    "stranger's base, sealed head": Arm("stranger's", sealed=True),
    CLEAR: Arm(),
    "sealed head": Arm(sealed=True),
    "DP head, epsilon 10": Arm(epsilon=10.0),
    "DP head, epsilon 100": Arm(epsilon=100.0),
    "distilled on 70 images": Arm(settings={"distilled_on": 70}),
    "sealed head, decisions": Arm(sealed=True, settings={"sees": "decisions", "questions": 1000}),
    "mean of 3 hospitals": Arm(settings={"averaged": 3}),
}
"""By name. Of a federation's hospitals an upload is a clear head, their mean what all of them get;
where the last mean leaves sealed, its receiver has a sealed head."""


def settings_of(
    name: str, settings: FewShotSettings, classes: int, clip: float = 4.0
) -> FewShotSettings:
    """Return the settings of who attacks an arm, and of whose head is attacked.

    Args:
        name: key of :data:`ARMS`.
        settings: of the clear head's attacker.
        classes: of the head; with images a class they give the promise's delta, ``N ** -1.1``.
        clip: L2 norm that private gradients are clipped to.

    Raises:
        FlSimError: if there is no such arm.
    """
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    arm = ARMS[name]
    changes = dict(arm.settings)
    if arm.epsilon is not None:
        delta = (classes * settings.images_per_class) ** EXPONENT
        changes["dp"] = DpSettings(target_epsilon=arm.epsilon, max_grad_norm=clip, delta=delta)
    return settings.model_copy(update=changes)
