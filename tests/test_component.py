"""Components: their settings are parsed once, and what was parsed is never seen from outside."""

import copy
import pickle
from typing import Any

import pytest
from pydantic import model_validator

from fl_sim.case import model_settings
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.registry import Registry
from fl_sim.settings import Settings

PARSED: list[Any] = []


class _Settings(Settings):
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)

    @model_validator(mode="before")
    @classmethod
    def _noted(cls, values: Any) -> Any:
        PARSED.append(values)
        return values


class _Thing:
    Settings = _Settings

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings


THINGS: Registry[type[_Thing]] = Registry("thing", "tests.nowhere")
THINGS.register("thing", "one that counts how often its settings are parsed")(_Thing)


@pytest.fixture
def checked() -> Component:
    component = Component.of({"name": "thing", "rate": 0.5}, "[thing]").checked(THINGS, "[thing]")
    PARSED.clear()
    return component


def test_settings_that_were_checked_are_parsed_no_more(checked: Component) -> None:
    first, second = (checked.build(THINGS, "[thing]") for _ in range(2))
    assert first.settings is second.settings and first.settings.rate == 0.5
    assert checked.differing() == {"name": "thing", "settings": {"rate": 0.5}}
    assert checked.checked(THINGS, "[thing]") == checked and not PARSED


def test_other_settings_are_checked_again(checked: Component) -> None:
    changed = checked.told(sizes=[3])
    assert changed.build(THINGS, "[thing]").settings.sizes == (3,) and len(PARSED) == 1
    assert checked.build(THINGS, "[thing]").settings.sizes == (1, 2)
    with pytest.raises(FlSimError, match="has no key 'size'"):
        checked.told(size=3)
    assert Component(name="thing").told(size=3).settings == {"size": 3}  # nothing checks it yet


def test_parsed_or_not_it_is_the_same(checked: Component) -> None:
    plain = Component.model_validate_json(checked.model_dump_json())
    assert plain == checked and plain != checked.told(rate=0.1) and checked != "thing"
    assert plain.build(THINGS, "[thing]").settings == checked.build(THINGS, "[thing]").settings


def test_a_class_that_was_made_here_is_not_pickled() -> None:
    model = Component(name="cnn").of_kind(model_settings("cnn"), "[model]")
    assert pickle.loads(pickle.dumps(model)) == model == copy.deepcopy(model)
    assert model.typed(model_settings("cnn"), "[model]") is model._parsed
