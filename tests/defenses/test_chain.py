"""A chain of defences: the steps it does, what it reports, and what it refuses."""

import json

import pytest
import torch

from fl_sim.defenses.chain import ChainSettings
from fl_sim.errors import FlSimError
from fl_sim.settings import parse
from tests.defenses.defense_kit import apply, release_of

STEPS = ["weight_dropout", {"name": "lwlrd", "epochs": 1, "layers": "tensor"}, "entry_removal"]


def test_defaults_are_filled_and_survive_json() -> None:
    settings = parse(ChainSettings, {"steps": STEPS}, "[defense]")
    assert [step.name for step in settings.steps] == ["weight_dropout", "lwlrd", "entry_removal"]
    assert settings.steps[0].settings == {"share": 0.05}
    assert settings.steps[1].settings["high"] == 1e-2
    again = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert parse(ChainSettings, again, "[defense]") == settings


def test_it_does_its_steps_in_order_and_joins_their_reports() -> None:
    release = release_of(entries={"codes": torch.ones(100)})
    report, before = apply("chain", release, steps=[*STEPS, {"name": "fine_tuning", "epochs": 2}])
    assert release.entries == {}
    assert len(report.epochs) == 3 and report.images == 80
    assert report.learning_rates["2:lwlrd/0.weight"] == 1e-2
    assert report.learning_rates["4:fine_tuning/0"] == 1e-4
    after = dict(release.model.named_parameters())
    assert report.relative_change.keys() == after.keys()
    for name, change in report.relative_change.items():
        moved = (after[name] - before[name]).norm() / before[name].norm()
        if before[name].any():
            assert change == pytest.approx(moved.item(), rel=1e-5)
    # What fine-tuning alone would not have moved so far was dropped first.
    alone = release_of()
    assert (
        report.relative_change["0.weight"]
        > (apply("lwlrd", alone, epochs=1, layers="tensor")[0].relative_change["0.weight"])
    )


def test_the_same_step_twice_draws_anew() -> None:
    step = {"name": "weight_dropout", "share": 0.5}
    zeros = []
    for steps in ([step], [step, step]):
        release = release_of()
        apply("chain", release, steps=steps)
        zeros.append((release.model.state_dict()["11.weight"] == 0).double().mean().item())
    assert zeros[0] == pytest.approx(0.5, abs=0.05) and zeros[1] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["lwlr"], "Did you mean 'lwlrd'"),
        ([{"name": "lwlrd", "hgih": 1}], r"\[defense\] steps has no key 'hgih'"),
        ([{"high": 1}], r"\[defense\] steps lacks the key 'name'"),
        ([], "'steps' is"),
    ],
)
def test_what_is_wrong_is_one_sentence(steps: list[object], words: str) -> None:
    with pytest.raises(FlSimError, match=words):
        parse(ChainSettings, {"steps": steps}, "[defense]")
