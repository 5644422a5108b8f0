"""A small model, images and policies, so that a decision takes a second or two."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from fl_sim.artifact import write_artifact
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset
from fl_sim.egress.policy import Policy
from fl_sim.egress.record import Record
from fl_sim.egress.releasing import versions
from fl_sim.egress.residue import CONTROLS
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec

SPEC = ModelSpec(name="mlp", channels=3, size=28, classes=4)
DEC = {"name": "dec", "codec": "png", "carrier": {"name": "lsb", "bits": 8}}
MODEL = b"weights"
NOUGHT = "0" * 64
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


def sample_record(**changes: object) -> Record:
    """Return a record of a folder whose model is ``MODEL``, with changes."""
    values: dict[str, object] = {
        "made": "2026-01-01T00:00:00+00:00",
        "decision": "release",
        "reasons": ["every criterion of the policy is met, or excepted by it"],
        "criteria": [],
        "policy": {"name": "given", "sha256": NOUGHT, "content": {"about": "for a test"}},
        "input": {
            "sha256": NOUGHT,
            "bytes": 3,
            "network": "mlp",
            "outputs": 4,
            "input": [3, 28, 28],
            "told_by": "owner",
            "left_behind": 0,
        },
        "output": {"model.safetensors": hashlib.sha256(MODEL).hexdigest()},
        "data": {"sha256": NOUGHT, "training": 1, "held_out": 1, "test": 1, "task": "multi-class"},
        "audits": {},
        "defense": None,
        "rehearsed": [],
        "membership": {},
        "utility": None,
        "controls": [control.model_dump() for control in CONTROLS],
        "residual_risks": [],
        "not_checked": [],
        "versions": versions(),
        "seed_commitment": NOUGHT,
    }
    return Record.model_validate_json(json.dumps({**values, **changes})).sealed()
