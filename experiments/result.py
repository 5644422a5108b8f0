"""What a run gives back: the table, the recovered images, and the files it wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.scenario import Scenario
from experiments.study import load_pictures
from fl_sim.results import read_table, summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        scenario: as run, with every default filled in.
        out: the run's folder.
    """

    scenario: Scenario
    out: Path

    @property
    def table(self) -> "pd.DataFrame":
        """The long table, a row a number."""
        return read_table(self.out / "results.csv")

    def summary(self) -> "pd.DataFrame":
        """One row a round and stage: leakage beside its floors, and utility."""
        return summary(self.table)

    @property
    def artifact(self) -> Path:
        """The model file that left last."""
        folder = self.out / "artifacts"
        kept = sorted(folder.glob("round-*-release.safetensors"))
        return kept[-1] if kept else folder / "release.safetensors"

    @property
    def picture(self) -> Path:
        """The grid of original and recovered images, as PNG; absent in an honest run."""
        return self.out / "images" / "recovered.png"

    @property
    def originals(self) -> torch.Tensor:
        """The first attacker's true images, float32 ``[n, channels, height, width]``."""
        return load_pictures(self.out).get("original", torch.empty(0))

    @property
    def recovered(self) -> dict[str, torch.Tensor]:
        """What the first attacker recovered last, by ``"<stage>/<extraction>"``, in [0, 1].

        For example ``result.recovered["release/affine"]``; each float32 ``[n, channels, height,
        width]`` in the order of ``originals``.
        """
        return {
            name: images
            for name, images in load_pictures(self.out).items()
            if name != "original" and not name.endswith("/ssim")
        }
