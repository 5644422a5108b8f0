"""A small model, images and policies, so that a decision takes a second or two."""

from pathlib import Path
from typing import Any

import torch

from fl_sim.artifact import write_artifact
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset
from fl_sim.egress.policy import Policy
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec

SPEC = ModelSpec(name="mlp", channels=3, size=28, classes=4)
DEC = {"name": "dec", "codec": "png", "carrier": {"name": "lsb", "bits": 8}}
REHEARSAL = {"attacks": [DEC], "images": 4, "epochs": 0.1, "above_chance": 1.0}


def images() -> Dataset:
    return load_dataset("phantoms", images=48)


def model_file(path: Path, **further: torch.Tensor) -> Path:
    return write_artifact(path, SPEC, state_of(build(SPEC, 1)) | further)


def policy(**changes: Any) -> Policy:
    """Return a policy that the small model meets, with changes."""
    asked: dict[str, Any] = {
        "defense": {"name": "consistent_distillation", "steps": 2},
        "audit": {"came": "suspicious", "leaves": "suspicious", "unchecked": 20},
        "utility": {"least": 0.0, "lost": 1.0, "own_epochs": 1},
    }
    return Policy.model_validate({**asked, **changes})
