"""A defence of one's own: ``python own_defense.py`` runs it, wherever the file lies.

It rounds every weight to 16 bits, which costs the model next to nothing and whatever was hidden in
the low bits everything. ``Release`` says what a defence is given.
"""

import pandas as pd
import torch
from pydantic import Field
from torch import nn

import fl_sim
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.perturb import float_entries, perturbing
from fl_sim.settings import Settings


class RoundingSettings(Settings):
    """Keys that ``[defense]`` takes.

    Args:
        bits: of the mantissa that are kept; the other bits are zero afterwards.
    """

    bits: int = Field(7, ge=0, le=23)


@DEFENSES.register("rounding", "every weight rounded to a few bits")
class Rounding(Defense[RoundingSettings]):
    """Round every float32 value to a few bits of its mantissa."""

    Settings = RoundingSettings

    @property
    def uses_labels(self) -> bool:
        """Never."""
        return False

    def apply(self, release: Release) -> DefenseReport:
        """Clean the model in place, and the entries that leave beside it."""
        cut = 1 << (23 - self.settings.bits)
        with perturbing(release) as report:
            for tensor in (*release.model.state_dict().values(), *float_entries(release).values()):
                if tensor.dtype == torch.float32:
                    bits = tensor.view(torch.int32)
                    bits.copy_((bits + cut // 2) & -cut)
        return report


def example(images: int = 8) -> dict[str, pd.DataFrame]:
    """Hide images in low bits, and return what they look like without and with the defence."""
    data = fl_sim.load_dataset("phantoms")
    training = {"epochs": 0.2}
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2704, 4)
    )
    attacked = fl_sim.attack(
        "dec", network, data.train, images=images, codec="png", training=training, progress=False
    )
    cleaned = fl_sim.clean(attacked, data.validation, defense="rounding", bits=7, progress=False)
    return {
        name: fl_sim.measure(
            fl_sim.extract(left, attacked.key), attacked.originals, public=data.test
        )
        for name, left in {"as trained": attacked, "rounded": cleaned}.items()
    }


if __name__ == "__main__":
    for name, leak in example().items():
        print(f"\n{name}\n{leak.to_string()}")
