"""A plan is checked before anything is trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.artifact import Key
from fl_sim.attacks.base import ATTACKS, Attack, Inside, Plan
from fl_sim.attacks.checked import make_plan
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec
from fl_sim.randomness import Stream

DATA = load_dataset("phantoms")
INSIDE = Inside(
    DATA.train, DATA.task, ModelSpec(name="cnn", channels=3, size=28, classes=4), Stream(0)
)
GOOD = ATTACKS.get("transpose")(ATTACKS.get("transpose").Settings(images=3)).plan(INSIDE)


class Planned(Attack[Any]):
    """One whose plan is given."""

    def __init__(self, plan: Callable[[], Any]) -> None:
        super().__init__(Attack.Settings())
        self._plan = plan

    def plan(self, inside: Inside) -> Plan:
        found: Plan = self._plan()
        return found

    def train(self, run: Any, plan: Plan) -> Any:
        raise AssertionError("trained")

    @classmethod
    def extract(cls, artifact: Any, key: Key) -> Any:
        raise AssertionError("extracted")


def test_a_good_plan_passes() -> None:
    assert make_plan(Planned(lambda: GOOD), INSIDE, "mine") is GOOD


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (lambda: None, r"plan is None, not a fl_sim\.attacks\.base\.Plan"),
        (lambda: replace(GOOD, key={"codes": 1}), "not a fl_sim.artifact.Key"),
        (lambda: replace(GOOD, key=Key({"codes": 1})), "the first argument is the attack's"),
        (lambda: replace(GOOD, key=Key("transposed")), "transpose"),
        (lambda: replace(GOOD, key=Key("dec", {"a": 3})), "holds 3 as 'a'"),  # type: ignore[dict-item]
        (lambda: replace(GOOD, key=Key("dec", {}, {"a": torch.ones(1)})), "written as JSON"),
        (lambda: replace(GOOD, indices=np.array([0.5])), "whole numbers"),
        (lambda: replace(GOOD, indices=np.array([0, 1, 10**6])), "there are"),
        (lambda: replace(GOOD, targets=GOOD.targets[:2]), r"3 images.*\[2, 3, 28, 28\]"),
        (lambda: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_plan_is_one_sentence_that_names_the_attack(
    plan: Callable[[], Any], said: str
) -> None:
    with pytest.raises(FlSimError, match=rf"(?s)^The attack 'mine'.*{said}"):
        make_plan(Planned(plan), INSIDE, "mine")


def test_the_sentence_of_an_attack_s_own_stays_as_it_is() -> None:
    def plan() -> Any:
        raise FlSimError("There are too few images.")

    with pytest.raises(FlSimError, match=r"^There are too few images\.$"):
        make_plan(Planned(plan), INSIDE, "mine")
