"""Plain values from outside: bounded before they are walked, and shown without harm."""

import json
import tracemalloc

import pytest

from fl_sim.errors import FlSimError, did_you_mean, printable, shown
from fl_sim.plain import DEEPEST, check_plain, parse_json


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "nope",
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "9" * 5000,
        '{"a": ' + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}",
        '{"a": 9223372036854775808}',
        '{"a": {"b": [1, -9223372036854775809]}}',
        b"\xff\xfe{",
        b"\x00",
    ],
)
def test_json_that_nothing_can_use_is_one_sentence(text: str | bytes) -> None:
    with pytest.raises(FlSimError, match="The header") as refusal:
        parse_json(text, "The header")
    assert len(str(refusal.value)) < 400 and str(refusal.value).isprintable()


def test_the_key_of_what_is_beyond_64_bits_is_named() -> None:
    with pytest.raises(FlSimError, match=r"'a\.b\.1' is 9223372036854775808"):
        check_plain({"a": {"b": [1, 2**63]}}, "It")


def test_what_is_within_bounds_is_returned() -> None:
    content = {"a": [1, 2.5, None, True, "x", {"b": 2**63 - 1}]}
    assert parse_json(json.dumps(content), "It") == content


def test_control_characters_and_directions_are_written_out() -> None:
    assert printable("a\x1b[31mb\nc\u202ed\ud800\x9b") == r"a\x1b[31mb\nc\u202ed\ud800\x9b"
    assert printable("Größe 28 [neu] 日本\u00a0%") == "Größe 28 [neu] 日本\u00a0%"


def test_shown_values_are_short() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, 10**5000, deep, {"a": ["b" * 500] * 50}):
        assert len(shown(value)) <= 120
    assert shown(10**5000) == "an integer of about 5000 digits"


def test_a_name_of_megabytes_costs_no_time_to_compare() -> None:
    tracemalloc.start()
    assert "Valid names" in did_you_mean("q" * 10**6, ["lsb", "sign"])
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
