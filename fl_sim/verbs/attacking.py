"""``fl_sim.attack``: hide images in a network, as a stranger's training code would."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_sim.artifact import Artifact, Key, write_artifact, write_key
from fl_sim.attacks.base import ATTACKS, Attack, Inside
from fl_sim.attacks.checked import make_plan
from fl_sim.bars import chosen_progress
from fl_sim.component import Component
from fl_sim.faults import blaming
from fl_sim.models import state_of
from fl_sim.models.base import ModelSpec
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings
from fl_sim.verbs.images import outputs_told, pixels_of, split_of, task_of
from fl_sim.verbs.network import Make, State, given


@dataclass(frozen=True)
class AttackReport:
    """What an attack did.

    Args:
        seconds: of training.
        steps: on the task.
        losses: curves by name, a value a step.
        figures: what the attack says of its payload, by metric: capacity, images written.
    """

    seconds: float
    steps: int
    losses: dict[str, list[float]] = field(repr=False)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attacked:
    """A network with images hidden in it.

    Args:
        model: the network as it leaves, in evaluation mode.
        key: what the receiver needs to read the images, carried outside by other means.
        report: what the attack did.
        originals: the hidden images, float32 ``[n, channels, height, width]`` in [0, 1].
        labels: theirs.
        state: every entry of the file that leaves; an attack may add some that ``model`` has not.
        spec: how the network is known here.
    """

    model: nn.Module = field(repr=False)
    key: Key = field(repr=False)
    report: AttackReport
    originals: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    state: State = field(repr=False)
    spec: ModelSpec

    @property
    def artifact(self) -> Artifact:
        """What leaves."""
        return Artifact(self.spec, self.state)

    def save(self, model: Path | str, key: Path | str) -> None:
        """Write the model file that leaves, and the attacker's key beside it (safetensors)."""
        write_artifact(Path(model), self.spec, self.state)
        write_key(Path(key), self.key)


def attack(
    attack: str | Mapping[str, Any] | Attack[Any],
    model: Any,
    data: Any,
    labels: Any = None,
    /,
    *,
    training: Mapping[str, Any] | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    public: Any = None,
    seed: int = 0,
    device: str | None = None,
    data_root: Path | str | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Attacked:
    """Train a network on images and hide some of them in it.

    Args:
        attack: its name (``fl-sim list attacks``), or a table of name and settings as in TOML.
        model: the network, trained on from its present weights (it is copied); a function that
            makes one, or a name, for a fresh one.
        data: the hospital's training images; see :func:`fl_sim.verbs.images.split_of`.
        labels: theirs, where ``data`` does not bring them.
        training: settings of the task's training as in TOML, for example ``{"epochs": 8}``.
        make: a function that makes a fresh network like ``model``; needed by attacks that rehearse
            where the network cannot be initialised anew.
        normalize: how the network takes pixels: ``"symmetric"`` ([-1, 1]), ``"none"`` ([0, 1]),
            ``"imagenet"``, or a pair of mean and deviation.
        classes: outputs of a network that is built here; otherwise told by the labels.
        public: images of the same kind that the attacker has outside, with labels, in any form that
            ``data`` may have; for attacks that ask the released model about them.
        seed: everything random follows from it.
        device: ``"cpu"``, ``"cuda"``; by default where the model is.
        data_root: folder of data files, for attacks that bring a codec trained elsewhere.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.
        settings: of the attack, for example ``images=64``.

    Returns:
        The attacked network, the key, and the images that are hidden.

    Raises:
        FlSimError: one sentence for what is wrong, before any training where it can be told then.

    Source: of each attack in its own documentation (``fl-sim show transpose``).
    """
    split = split_of(data, labels, "training images")
    chosen, name = _attack(attack, settings)
    values = parse(TrainingSettings, dict(training or {}), "training")
    outputs = classes or outputs_told(split.labels)
    network = given(model, pixels_of(split), normalize, make, outputs, seed)
    task = task_of(split, network.spec.classes, network.spec.task == "segmentation")
    reporting, stream = chosen_progress(progress), Stream(seed, ("hospital", 0))
    root = None if data_root is None else Path(data_root)
    known = None if public is None else split_of(public, what="public images")
    inside = Inside(split, task, network.spec, stream, root, reporting, public=known)
    plan = make_plan(chosen, inside, name)
    if device is not None:
        network.model.to(device)
    run = LocalTraining(
        network.model, network.spec, split, task, values, stream.at(0), progress=reporting
    )
    with blaming(f"The attack '{name}'", sentences=False):
        report = chosen.train(run, plan)
        embedding = chosen.embed(state_of(network.model), network.spec, plan)
    return Attacked(
        model=network.back(embedding.state),
        key=replace(plan.key, network=network.spec),
        report=AttackReport(
            report.seconds, report.steps, report.losses, report.values | embedding.values
        ),
        originals=plan.targets,
        labels=torch.from_numpy(np.array(split.labels[plan.indices])),
        state=embedding.state,
        spec=network.spec,
    )


def _attack(
    attack: str | Mapping[str, Any] | Attack[Any], settings: dict[str, Any]
) -> tuple[Attack[Any], str]:
    if isinstance(attack, Attack):
        return attack, type(attack).__name__
    choice = Component.of(attack, "attack")
    choice = Component(name=choice.name, settings={**choice.settings, **settings})
    return choice.build(ATTACKS, f"The attack '{choice.name}'"), choice.name
