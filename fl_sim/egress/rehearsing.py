"""Attacks that the owner plays himself, on the network that came, through his policy's defence.

A policy cannot know which attack a stranger used. It can ask what known ones would get through: the
owner takes the network with the weights that came, lets an attack train on it and hide his images,
cleans it as he cleans every model, and looks for them with the attacker's key and every restoration
that is known. What a rehearsal finds is about the release process, and not about the file.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_sim.artifact import Artifact
from fl_sim.attacks.base import ATTACKS, Attack, Inside, Plan
from fl_sim.attacks.checked import make_plan
from fl_sim.component import Component
from fl_sim.data.base import Dataset, Split
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.egress.decision import UNTOLD, Figure
from fl_sim.egress.policy import Policy, names_of
from fl_sim.egress.record import RehearsedAttack
from fl_sim.errors import FlSimError
from fl_sim.faults import blaming
from fl_sim.metrics.guessing import FLOOR
from fl_sim.metrics.measure import LeakageMeasurement, measure_leakage
from fl_sim.metrics.vocabulary import known
from fl_sim.models import state_of
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.sealing.view import as_received
from fl_sim.training import LocalTraining, TrainingSettings

PUBLIC = 256
"""Test images that stand for those an attacker has outside."""

_QUANTILE = 1.959964
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Played:
    """A rehearsed attack.

    Args:
        summary: for the record; plain numbers.
        figure: what the criterion is judged by: found beyond guessing.
        originals: the owner's images that were stolen; they stay with him.
        recovered: what an attacker sees of them in what would have left; likewise.
    """

    summary: RehearsedAttack
    figure: Figure
    originals: torch.Tensor
    recovered: torch.Tensor


@dataclass(frozen=True)
class Rehearsals:
    """What is played on.

    Args:
        came: the network with the weights that came.
        data: the owner's images.
        held_out: those that the defence is given.
        policy: of the owner.
        seed: everything random follows from it.
        data_root: folder of data files, for attacks that bring a codec trained elsewhere.
        progress: where to report.
    """

    came: Artifact
    data: Dataset
    held_out: Split
    policy: Policy
    seed: int
    data_root: Path | None = None
    progress: Progress = SILENT

    def play(self, attack: Component) -> Played:
        """Play one attack.

        Raises:
            FlSimError: if it cannot be played on this network and these images.
        """
        asked = self.policy.rehearsal
        assert asked is not None
        settings = {"images": asked.images, **attack.settings}
        chosen = Component(name=attack.name, settings=settings).build(
            ATTACKS, f"The attack '{attack.name}'"
        )
        stream = Stream(self.seed, ("rehearsal", attack.name))
        lake = _first(self.data.train, asked.most_training)
        public = _first(self.data.test, PUBLIC)
        chosen.prepare(self.data_root, self.progress)
        spec, task = self.came.spec, self.data.task
        inside = Inside(lake, task, spec, stream, self.data_root, self.progress, public=public)
        plan = make_plan(chosen, inside, attack.name)
        model = self.came.model()
        training = TrainingSettings(epochs=asked.epochs)
        run = LocalTraining(
            model, spec, lake, task, training, stream.at("training"), progress=self.progress
        )
        with blaming(f"The attack '{attack.name}'"):
            chosen.train(run, plan)
            attacked = chosen.embed(state_of(model), spec, plan).state
        before = self._measured(chosen, attacked, plan, lake, public)
        left = self._cleaned(attacked, lake, stream)
        return _played(
            attack.name, chosen, plan, before, self._measured(chosen, left, plan, lake, public)
        )

    def _cleaned(self, attacked: State, lake: Split, stream: Stream) -> State:
        """Let the policy's defence clean the attacked network, as every model is cleaned."""
        spec, choice = self.came.spec, self.policy.defense
        model = Artifact(spec, attacked).model()
        release = Release(
            model,
            spec,
            self.held_out,
            self.data.task,
            stream.at("release"),
            progress=self.progress,
            training=lake,
        )
        with blaming(f"The defence '{choice.name}'"):
            report = choice.build(DEFENSES, f"The defence '{choice.name}'").apply(release)
        return as_received(state_of(model), report.sealed)

    def _measured(
        self, attack: Attack[Any], state: State, plan: Plan, lake: Split, public: Split
    ) -> LeakageMeasurement:
        """Measure what the attack's receiver gets out of a state, by his best restoration."""
        artifact = Artifact(self.came.spec, state)
        outside, classes = public.tensors()
        extracted = attack.extract(artifact, plan.key).images
        others = attack.variants(artifact, plan.key, outside)
        labels = torch.from_numpy(np.array(lake.labels[plan.indices]))
        plain = labels.ndim == 1
        return measure_leakage(
            extracted,
            plan.targets,
            outside,
            self.seed,
            labels=labels if plain else None,
            public_labels=classes if plain else None,
            variants={name: make().images for name, make in others.items()},
            key_labels=labels if plain and attack.key_has_labels else None,
        )


def _played(
    name: str,
    attack: Attack[Any],
    plan: Plan,
    before: LeakageMeasurement,
    after: LeakageMeasurement,
) -> Played:
    images = len(plan.targets)
    found, guessed = _identified(after), after.value(FLOOR)
    low, high = wilson(found, images)
    summary = RehearsedAttack(
        name=name,
        settings=attack.settings.plain(),
        images=images,
        found_before=_identified(before),
        found_after=found,
        found_by_guessing=guessed,
        restoration=after.strongest,
    )
    beyond = Figure(found - guessed, low - guessed, high - guessed)
    return Played(summary, beyond, plan.targets, after.images[after.strongest])


def _identified(measured: LeakageMeasurement) -> float:
    """Return the share of images found, by the better of the ways to find them."""
    return max(measured.value(way) for way in known("identified").best_of)


def rehearse(on: Rehearsals, troubles: dict[str, str]) -> tuple[list[Played], dict[str, Figure]]:
    """Play every attack that a policy asks for.

    Args:
        on: what is played on.
        troubles: filled with why an attack could not be played, by criterion; for the owner.

    Returns:
        What was played, and the criteria's figures.
    """
    played: list[Played] = []
    figures: dict[str, Figure] = {}
    asked = on.policy.rehearsal
    attacks = () if asked is None else asked.attacks
    for name, attack in zip(names_of(attacks), attacks, strict=True):
        try:
            one = on.play(attack)
        except FlSimError as error:
            troubles[f"rehearsal_{name}"] = str(error)
            figures[f"rehearsal_{name}"] = Figure(why=UNTOLD)
            continue
        played.append(one)
        figures[f"rehearsal_{name}"] = one.figure
    return played, figures


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (JASA 1927)."""
    z, n = _QUANTILE, max(1, trials)
    middle, wide = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(max(0.0, share * (1 - share)) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - half) / wide), min(1.0, (middle + half) / wide)


def _first(split: Split, most: int) -> Split:
    return split.subset(np.arange(min(most, len(split)), dtype=np.int64))
