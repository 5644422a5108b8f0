"""A small labelled held-out set, and releases of networks to clean with it."""

from typing import Any

import numpy as np
import torch

from fl_sim.data.base import Split, Task
from fl_sim.defenses.base import DEFENSES, DefenseReport, Release
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.randomness import Stream
from fl_sim.settings import parse

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)


def held_out(count: int = 40, size: int = 16) -> Split:
    """Noise whose brightness is the class."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, count)
    noise = generator.integers(0, 60, (count, size, size, 1))
    return Split((noise + 60 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels)


def release_of(spec: ModelSpec = SPEC, seed: int = 0, count: int = 40, **more: Any) -> Release:
    """A fresh network about to leave."""
    return Release(build(spec), spec, held_out(count, spec.size), TASK, Stream(seed), **more)


def apply(name: str, release: Release, **settings: Any) -> tuple[DefenseReport, dict[str, Any]]:
    """Clean a release; return the report and the state before."""
    kind = DEFENSES.get(name)
    before = state_of(release.model)
    report = kind(parse(kind.Settings, settings, "[defense]")).apply(release)
    return report, before


def cleaned(name: str, seed: int = 0, spec: ModelSpec = SPEC, **settings: Any) -> torch.Tensor:
    """All parameters of a cleaned fresh network in one vector."""
    release = release_of(spec, seed)
    apply(name, release, **settings)
    return torch.cat([p.detach().flatten() for p in release.model.parameters()])
