"""Settings refuse by key what no computation could use."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fl_sim.errors import FlSimError
from fl_sim.settings import FURTHEST, MOST, Seed, Settings, parse


class _Inner(Settings):
    rate: float = 0.1


class _Outer(Settings):
    count: int = 1
    few: int = Field(1, le=2**40)
    counts: tuple[int, ...] = ()
    factor: float | None = None
    norm: Annotated[float, Field(gt=0)] | Literal["honest"] | None = None
    amplify: bool | float = False
    seed: Seed = 0
    name: str = ""
    inner: _Inner = _Inner()


REFUSED: dict[str, list[Any]] = {
    "count": [MOST + 1, -MOST - 1, 2**62, 2**200, 1.5, True, "7", None, float("inf")],
    "few": [2**40 + 1],
    "counts": [[1, MOST + 1], [2**63], 3],
    "factor": [float("nan"), float("inf"), -float("inf"), 2 * FURTHEST, True, "0.5"],
    "norm": [float("inf"), float("nan"), 0, 1e300, "0.5", "honset"],
    "amplify": [float("inf"), 1e31],
    "seed": [-1, 2**63, True],
    "name": [3, None],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in REFUSED.items() for v in vs])
def test_what_cannot_run_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(FlSimError, match=rf"'{key}[.']|'{key}") as refusal:
        parse(_Outer, {key: value}, "[outer]")
    assert str(refusal.value).startswith("[outer]") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e31])
def test_so_are_keys_of_tables_inside(value: float) -> None:
    with pytest.raises(FlSimError, match="rate"):
        parse(_Outer, {"inner": {"rate": value}}, "[outer]")


def test_what_can_run_is_taken() -> None:
    values = {
        "count": MOST,
        "few": 2**40,
        "counts": [1, 2],
        "factor": 3,
        "norm": "honest",
        "amplify": True,
        "seed": 2**63 - 1,
        "inner": {"rate": 1},
    }
    assert parse(_Outer, values, "[outer]").few == 2**40


def test_deep_tables_are_refused_before_they_are_walked() -> None:
    deep: object = 1
    for _ in range(10_000):
        deep = {"a": deep}
    with pytest.raises(FlSimError, match="inside each other"):
        parse(_Outer, {"inner": deep}, "[outer]")


def test_every_number_of_every_component_has_an_end() -> None:
    from fl_sim.attacks.base import ATTACKS
    from fl_sim.carriers.base import CARRIERS
    from fl_sim.codec import CODECS
    from fl_sim.coding.base import CODES
    from fl_sim.defenses.base import DEFENSES

    for registry in (ATTACKS, CARRIERS, CODECS, CODES, DEFENSES):
        for entry in registry.entries():
            kind = entry.component.Settings
            if any(field.is_required() for field in kind.model_fields.values()):
                continue
            for key, field in kind.model_fields.items():
                if field.annotation not in (int, float):
                    continue
                for value in (float("inf"), float("nan"), 1e308, 10**31, True):
                    with pytest.raises(FlSimError, match=key):
                        parse(kind, {key: value}, f"[{entry.name}]")
