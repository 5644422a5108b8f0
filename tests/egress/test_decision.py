"""A decision fails closed."""

import math

import pytest

from fl_sim.egress.decision import Figure, judge, verdict
from fl_sim.egress.policy import limits
from tests.egress.egress_kit import DEC, REHEARSAL, policy

ASKED = policy(cap={"bytes": 100}, rehearsal=REHEARSAL)
NAMES = [limit.name for limit in limits(ASKED)]
GOOD = {
    "audit_came": Figure(0.0),
    "unchecked_came": Figure(0.0),
    "audit_leaves": Figure(0.0),
    "unchecked_leaves": Figure(0.0),
    "cap": Figure(64.0),
    "rehearsal_dec": Figure(0.0, -0.1, 0.2),
    "utility": Figure(0.8, 0.7, 0.9),
    "utility_lost": Figure(0.01, -0.01, 0.03),
}


def test_what_meets_every_limit_is_released() -> None:
    assert set(GOOD) == set(NAMES)
    criteria = judge(ASKED, GOOD)
    assert [one.status for one in criteria] == ["met"] * len(NAMES)
    assert verdict(criteria) == "release"


@pytest.mark.parametrize("missing", NAMES)
def test_each_figure_that_is_missing_refuses(missing: str) -> None:
    figures = {name: figure for name, figure in GOOD.items() if name != missing}
    criteria = judge(ASKED, figures)
    assert [one.name for one in criteria if one.refuses] == [missing]
    assert verdict(criteria) == "refuse"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("end", ["value", "low", "high"])
def test_what_is_no_number_refuses(value: float, end: str) -> None:
    figure = Figure(**{"value": 0.8, "low": 0.7, "high": 0.9, end: value})
    criteria = judge(ASKED, {**GOOD, "utility": figure})
    assert {one.status for one in criteria if one.name == "utility"} == {"not run"}
    assert verdict(criteria) == "refuse"


def test_an_exception_excuses_what_could_not_run_and_not_what_was_missed() -> None:
    excepting = policy(cap={"bytes": 100}, exceptions={"utility": "no labels yet"})
    unmeasured = judge(excepting, {**GOOD, "utility": Figure(why="no labels")})
    status = {one.name: one for one in unmeasured}["utility"]
    assert status.status == "excepted" and "no labels yet" in status.reason
    assert verdict(unmeasured) == "release"
    asked = policy(
        cap={"bytes": 100}, utility={"least": 0.9}, exceptions={"utility": "no labels yet"}
    )
    assert verdict(judge(asked, GOOD)) == "refuse"


@pytest.mark.parametrize(
    ("judged_by", "figure", "status"),
    [
        ("interval", Figure(0.8, 0.69, 0.9), "missed"),
        ("interval", Figure(0.8, 0.7, 0.9), "met"),
        ("value", Figure(0.7, 0.5, 0.9), "met"),
        ("value", Figure(0.69, 0.5, 0.9), "missed"),
        ("interval", Figure(0.69), "missed"),
    ],
)
def test_the_worse_end_counts_where_intervals_do(
    judged_by: str, figure: Figure, status: str
) -> None:
    asked = policy(judged_by=judged_by, utility={"least": 0.7})
    found = {one.name: one.status for one in judge(asked, {**GOOD, "utility": figure})}
    assert found["utility"] == status


def test_of_a_most_the_upper_end_counts() -> None:
    asked = policy(rehearsal={"attacks": [DEC], "above_chance": 0.15})
    found = {one.name: one for one in judge(asked, GOOD)}["rehearsal_dec"]
    assert (found.status, found.judged) == ("missed", 0.2)


def test_nothing_asked_is_no_release() -> None:
    assert verdict([]) == "refuse"
