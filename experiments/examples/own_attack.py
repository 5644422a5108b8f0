"""An attack of one's own: ``python own_attack.py`` runs it, wherever the file lies.

It trains honestly, shrinks the stolen images, and writes their pixels over the last eight bits of
weights of the largest tensor. ``Attack`` says what else an attack may do.
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

import fl_sim
from experiments.run.result import Result
from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import (
    ATTACKS,
    Attack,
    AttackSettings,
    Averaging,
    Embedding,
    Extraction,
    Inside,
    Plan,
    steal,
)
from fl_sim.attacks.keys import key_images, key_settings, wrong
from fl_sim.carriers.base import State
from fl_sim.errors import shown
from fl_sim.models import ModelSpec, skeleton
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, TrainReport, train

SIDE = 14


class ThumbnailSettings(AttackSettings):
    """Keys that ``[attack]`` takes."""

    images: int = Field(32, ge=1)


class ThumbnailKey(Settings):
    """What the receiver must know: how many images, and where."""

    images: int
    tensor: str


@ATTACKS.register("thumbnails", "shrunken images in the last bits of one tensor")
class Thumbnails(Attack[ThumbnailSettings]):
    """Hide shrunken images in the last bits of the largest tensor."""

    Settings = ThumbnailSettings

    def plan(self, inside: Inside) -> Plan:
        """Choose images at random, and the tensor."""
        indices, targets, _ = steal(inside, self.settings.images)
        state = skeleton(inside.spec)
        largest = max(state, key=lambda name: state[name].numel())
        room = state[largest].numel() // (inside.spec.channels * SIDE**2)
        if len(indices) > room:
            raise fl_sim.FlSimError(f"'{largest}' has room for {room} thumbnails; steal fewer.")
        key = ThumbnailKey(images=len(indices), tensor=largest)
        return Plan(indices, targets, Key("thumbnails", settings=key.model_dump()))

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task, as an honest hospital would."""
        return train(run)

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Write the thumbnails into what is about to leave."""
        small = functional.interpolate(plan.targets, size=(SIDE, SIDE), mode="area")
        content = (255 * small).round().to(torch.uint8).flatten().numpy()
        name = plan.key.settings["tensor"]
        weights = state[name].detach().cpu().numpy().copy()
        bits = weights.reshape(-1).view(np.uint32)
        bits[: len(content)] = bits[: len(content)] & ~np.uint32(255) | content
        return Embedding({**state, name: torch.from_numpy(weights)})

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """A key is a file from anywhere, so all of it is checked here."""
        told = key_settings(key, ThumbnailKey)
        key_images(key, told.images, artifact)
        needed = told.images * artifact.spec.channels * SIDE**2
        if told.tensor not in artifact.state or artifact.state[told.tensor].numel() < needed:
            raise wrong(key, f"does not fit the model's entry {shown(told.tensor)}")

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Read the thumbnails from the file, and enlarge them."""
        shape = (key.settings["images"], artifact.spec.channels, SIDE, SIDE)
        weights = artifact.state[key.settings["tensor"]].numpy().reshape(-1).view(np.uint32)
        content = (weights[: np.prod(shape)] & 255).astype(np.float32) / 255
        small, size = torch.from_numpy(content.reshape(shape)), artifact.spec.size
        return Extraction(functional.interpolate(small, size=(size, size), mode="bilinear"))


def example(out: Path | None = None) -> Result:
    """Let it attack a data lake, where fine-tuning is the defence."""
    return fl_sim.run(
        {
            "mode": "centralized",
            "dataset": {"name": "phantoms", "train": 240, "validation": 60, "test": 60},
            "model": "cnn",
            "training": {"epochs": 1},
            "attack": {"name": "thumbnails", "images": 32},
            "defense": {"name": "fine_tuning", "epochs": 1},
        },
        out,
    )


if __name__ == "__main__":
    table = example().summary()
    print(table[["stage", "ssim raw", "identification_distance raw", "auc"]].to_string())
