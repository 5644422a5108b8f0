"""Policies: what they say in plain words, and what is refused."""

from pathlib import Path

import pytest

from fl_sim.egress.policy import (
    LONGEST,
    Policy,
    explained,
    limits,
    names_of,
    not_asked,
    read_policy,
    shipped,
)
from fl_sim.errors import FlSimError
from fl_sim.settings import parse

DEFENSE = {"defense": "lwlrd"}


@pytest.mark.parametrize("name", ["cautious", "moderate"])
def test_a_shipped_policy_says_every_limit_in_a_sentence(name: str) -> None:
    policy, called, content = read_policy(name)
    assert called == name and content == shipped()[name].read_bytes()
    said = explained(policy)
    for limit in limits(policy):
        assert any(s.startswith(f"{limit.name}: ") and limit.question in s for s in said)
    assert all(sentence.rstrip()[-1] in ".?" for sentence in said)


def test_the_cautious_one_is_nowhere_laxer_than_the_moderate_one() -> None:
    cautious, moderate = ({x.name: x for x in limits(read_policy(n)[0])} for n in shipped())
    for name in cautious.keys() & moderate.keys() - {"utility_lost"}:
        one, other = cautious[name], moderate[name]
        if one.most is not None:
            assert one.most <= other.most
        else:
            assert one.least >= other.least
    assert "cap" in cautious and "cap" not in moderate
    assert read_policy("cautious")[0].judged_by == "interval"


def test_what_is_left_out_is_not_asked_and_said() -> None:
    policy = parse(Policy, DEFENSE, "policy")
    assert [limit.name for limit in limits(policy)] == [
        "audit_came",
        "unchecked_came",
        "audit_leaves",
        "unchecked_leaves",
    ]
    assert len(not_asked(policy)) == 4
    assert sum(sentence.startswith("Not asked: ") for sentence in explained(policy)) == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "lacks the key 'defense'"),
        ({"defense": "lwlr"}, "Did you mean 'lwlrd'"),
        ({"defense": {"name": "lwlrd", "epoch": 1}}, "epoch"),
        ({**DEFENSE, "cap": {"byte": 3}}, "byte"),
        ({**DEFENSE, "rehearsal": {"attacks": [], "above_chance": 0.1}}, "'attacks' is empty"),
        ({**DEFENSE, "rehearsal": {"attacks": ["dex"], "above_chance": 0.1}}, "dec"),
        ({**DEFENSE, "exceptions": {"cap": "none"}}, "no criterion 'cap'"),
        ({**DEFENSE, "cap": {"bytes": 9}, "exceptions": {"cap": " "}}, "no reason"),
        ({**DEFENSE, "utility": {"least": 1.5}}, "least"),
        (
            {
                **DEFENSE,
                "membership": {
                    "tpr_at_0_1_percent": 0.1,
                    "tpr_at_1_percent": 0.1,
                    "references": 3,
                },
            },
            "references",
        ),
    ],
)
def test_a_policy_that_cannot_be_carried_out_is_one_sentence(values: dict, said: str) -> None:
    with pytest.raises(FlSimError, match="policy") as caught:
        parse(Policy, values, "The policy mine")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_policies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="Did you mean 'cautious'"):
        read_policy("cautios")
    with pytest.raises(FlSimError, match="does not exist"):
        read_policy(tmp_path / "none.toml")
    for content, said in ((b"= 3", "no TOML"), (b"\xff", "no TOML"), (b"#" * LONGEST * 2, "KiB")):
        path = tmp_path / "policy.toml"
        path.write_bytes(content)
        with pytest.raises(FlSimError, match=said):
            read_policy(path)


def test_attacks_of_one_name_are_told_apart() -> None:
    attacks = {"attacks": ["transpose", "transpose"], "above_chance": 0.0}
    policy = parse(Policy, {**DEFENSE, "rehearsal": attacks}, "policy")
    assert names_of(policy.rehearsal.attacks) == ["transpose", "transpose#2"]
    assert len({limit.name for limit in limits(policy)}) == len(list(limits(policy)))
