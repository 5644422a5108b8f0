"""Membership inference of every model that leaves, where ``[membership]`` asks for it.

Members are the training images of the hospitals that take part, the others the images that utility
is measured on. Of a release the held-out images are members, too: a defence trains on them, so they
have a number of their own. Reference models are trained as the scenario trains, unattacked and
undefended, on halves of all images of the dataset's splits that the case uses; in a federation
centrally, for as many epochs as its rounds have together.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from experiments.run.owner import Owner
from experiments.run.scenario import Scenario
from fl_sim.case import Case
from fl_sim.data.partitions import cached_partition
from fl_sim.membership_inference.base import METHODS, MODES, MembershipSettings
from fl_sim.membership_inference.infer import infer
from fl_sim.membership_inference.outcome import FAIRLY_SURE, SURE, Membership
from fl_sim.membership_inference.references import Pool, Recipe, References, pool_of, references
from fl_sim.membership_inference.signals import Floats, ask
from fl_sim.metrics.measure import Measured
from fl_sim.progress import Progress
from fl_sim.training import TrainingSettings

RATES = {"membership_tpr_at_1_percent": FAIRLY_SURE, "membership_tpr_at_1_per_mille": SURE}
"""False positive rates by metric."""


class MembershipOfRun:
    """Infers membership from the models of one run.

    Args:
        scenario: what is run; it says which attack, with how many reference models.
        settings: of the scenario's ``[membership]``.
        case: its data and network.
        owner: on whose machine reference models are trained.
        progress: where training reports.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: MembershipSettings,
        case: Case,
        owner: Owner,
        progress: Progress,
    ) -> None:
        self._scenario = scenario
        self._settings = settings
        self._case = case
        self._owner = owner
        self._progress = progress

    def rows(self, model: nn.Module, stage: str) -> tuple[list[Measured], Membership]:
        """Infer membership from what a model answers.

        Args:
            model: of a stage, on the owner's device.
            stage: ``"upload"``, ``"aggregate"`` or ``"release"``.

        Returns:
            The rows, and what the scenario's attack found.
        """
        target = ask(model, self._pool.split, self._case.task)
        found = self._against(target, self._members, self._settings)
        told = {
            **_numbers(found, ""),
            "membership_auc_error": found.auc_error,
            "membership_auc_floor": 0.5,
            **{f"{metric}_floor": found.chance(rate) for metric, rate in RATES.items()},
            "membership_members": float(found.members),
            "membership_nonmembers": float(found.nonmembers),
        }
        for other in self._others:
            part = f"[{other.name}, {other.mode}]"
            told |= _numbers(self._against(target, self._members, other), part)
        if stage == "release":
            held_out = self._pool.places[_HELD_OUT]
            told |= _numbers(self._against(target, held_out, self._settings), "[held-out]")
            told["membership_members[held-out]"] = float(len(held_out))
        return [Measured("-", metric, value) for metric, value in told.items()], found

    @property
    def _others(self) -> list[MembershipSettings]:
        """Every attack that there are reference models enough for."""
        count = self._settings.references
        return [
            MembershipSettings(name=name, mode=mode, references=count)
            for name in METHODS.names()
            if METHODS.get(name).fewest <= count
            for mode in MODES
        ]

    def _against(
        self, target: Floats, members: NDArray[np.int64], settings: MembershipSettings
    ) -> Membership:
        """Tell images of the pool from those of the test set."""
        asked = np.concatenate([members, self._pool.places[_TEST]])
        patients = self._pool.split.patients
        return infer(
            target[asked],
            self._known.of(asked),
            len(members),
            settings,
            None if patients is None else patients[asked],
        )

    @cached_property
    def _pool(self) -> Pool:
        case = self._case
        return pool_of(case.train, case.held_out, case.test, case.public)

    @cached_property
    def _members(self) -> NDArray[np.int64]:
        """Places in the pool of the images that were trained on."""
        federation, places = self._scenario.federation, self._pool.places[_TRAIN]
        if federation is None or not federation.absent:
            return places
        shares = cached_partition(
            self._case.train,
            self._case.task,
            federation.hospitals,
            federation.partition,
            self._scenario.seed,
        )
        return np.concatenate([places[shares[number]] for number in federation.present])

    @cached_property
    def _known(self) -> References:
        case, scenario = self._case, self._scenario
        weights = case.own_weights
        recipe = Recipe(
            spec=case.spec,
            task=case.task,
            training=_whole(scenario),
            start=None if weights is None else lambda seed: case.initial(seed).model,
            from_file="" if weights is None else case.files[-1].sha256,
            device=self._owner.device,
        )
        return references(self._pool, recipe, self._settings.references, self._progress)


_TRAIN, _HELD_OUT, _TEST = 0, 1, 2


def _whole(scenario: Scenario) -> TrainingSettings:
    """Return how reference models are trained: for all rounds at once."""
    rounds = 1 if scenario.federation is None else scenario.federation.rounds
    return scenario.training.model_copy(update={"epochs": scenario.training.epochs * rounds})


def _numbers(found: Membership, part: str) -> dict[str, float]:
    shares = {f"{metric}{part}": found.tpr(rate) for metric, rate in RATES.items()}
    return {f"membership_auc{part}": found.auc, **shares}
