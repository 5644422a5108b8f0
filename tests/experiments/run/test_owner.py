"""The data owner's part: what his defence is given."""

from pathlib import Path
from typing import Any, cast

from experiments.run.running import Run
from experiments.run.scenario import Scenario
from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.models import state_of
from tests.experiments.run_kit import CENTRALIZED


class _Watching:
    """A defence that does nothing but note what it draws."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def apply(self, release: Release) -> DefenseReport | None:
        self.drawn.append(int(release.stream.numpy("anything").integers(2**62)))
        return None


def test_a_defence_draws_anew_in_every_round_and_the_same_again(tmp_path: Path) -> None:
    owner = Run(Scenario.create(**CENTRALIZED), tmp_path, None).owner
    watching = _Watching()
    cast(Any, owner)._defense = watching
    state = state_of(owner.initial_model())
    for server_round in (1, 2, 1):
        owner.defend(state, server_round)
    first, second, again = watching.drawn
    assert first != second and first == again
