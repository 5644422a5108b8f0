"""The attacker's rehearsal, and what is learned from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim import rehearsal as module
from fl_sim.attacks.transpose import Transpose, TransposeSettings
from fl_sim.case import CaseSettings, open_case
from fl_sim.component import Component
from fl_sim.data.splits import HeldOutSettings
from fl_sim.defenses.lwlrd import Lwlrd, LwlrdSettings
from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import identification
from fl_sim.randomness import Stream
from fl_sim.rehearsal import AttackerSettings, Outside, Rehearsal, rehearse
from fl_sim.restorations.affine import affine
from fl_sim.restorations.learned import learn
from fl_sim.settings import parse
from fl_sim.training import TrainingSettings

CASE = CaseSettings(
    dataset=Component(name="phantoms", settings={"size": 16}),
    model=Component(name="cnn"),
    data=HeldOutSettings(public_images=40),
)
STREAM = Stream(7, ("rehearsal",))
ATTACK = Transpose(TransposeSettings(images=16))
DEFENSE = Lwlrd(LwlrdSettings(epochs=1))
SETTINGS = AttackerSettings(knows_defense=True, rehearsal_defenses=2)


@pytest.fixture(scope="module")
def outside() -> Outside:
    case = open_case(CASE, None)
    training = TrainingSettings(learning_rate=1e-3)
    return Outside(case.public, case.task, case.spec, training, steps=60, held_out=48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FL_SIM_CACHE", str(folder))
    return folder / "rehearsals"


def played(outside: Outside, settings: AttackerSettings = SETTINGS) -> Rehearsal:
    return rehearse(outside, ATTACK, DEFENSE, settings, STREAM)


def test_a_rehearsal_gives_pairs(outside: Outside, cache: Path) -> None:
    result = played(outside)
    assert result.originals.shape == (16, 3, 16, 16)
    assert result.after.shape == (2, 16, 3, 16, 16)
    assert identification(result.after[0], result.originals).correlation > 0.5
    assert not torch.equal(result.after[0], result.after[1]), "each defence draws its own"
    public = {image.numpy().tobytes() for image in outside.public.tensors()[0]}
    assert {image.numpy().tobytes() for image in result.originals} <= public


def test_the_second_time_it_is_read_from_the_cache_bit_for_bit(
    outside: Outside, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = played(outside)
    files = list(cache.glob("*.safetensors"))

    def fail(self: object) -> Rehearsal:
        raise AssertionError("played again")

    with monkeypatch.context() as patched:
        patched.setattr(module._Play, "perform", fail)
        again = played(outside)
        for field in ("originals", "after"):
            assert torch.equal(getattr(once, field), getattr(again, field))
    for file in files:
        file.unlink()
    anew = played(outside)
    assert torch.equal(once.after, anew.after), "what the cache holds is what would be computed"


def test_whatever_a_rehearsal_depends_on_makes_another_one(
    outside: Outside, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(self: module._Play) -> Rehearsal:
        asked.append(self.digest())
        raise FlSimError("enough")

    def ask(outside: Outside, settings: AttackerSettings = SETTINGS, **others: object) -> None:
        parts = {"attack": ATTACK, "defense": DEFENSE, "stream": STREAM} | others
        with pytest.raises(FlSimError, match="enough"):
            rehearse(
                outside,
                parts["attack"],
                parts["defense"],
                settings,
                parts["stream"],
            )

    monkeypatch.setattr(module._Play, "perform", note)
    monkeypatch.setenv("FL_SIM_CACHE", str(cache / "empty"))
    ask(outside)
    ask(replace(outside, steps=61))
    ask(replace(outside, held_out=49))
    ask(replace(outside, training=TrainingSettings(learning_rate=2e-3)))
    ask(replace(outside, public=outside.public.subset(np.arange(39))))
    ask(outside, AttackerSettings(rehearsal_images=8, rehearsal_defenses=2))
    ask(outside, AttackerSettings(rehearsal_defenses=3))
    ask(outside, AttackerSettings(rehearsal_defenses=2, held_out_share=0.5))
    ask(outside, attack=Transpose(TransposeSettings(images=16, loss="l1")))
    ask(outside, defense=Lwlrd(LwlrdSettings(epochs=2)))
    ask(outside, stream=Stream(8, ("rehearsal",)))
    assert len(set(asked)) == len(asked) == 11
    ask(outside)
    assert asked[-1] == asked[0]


def test_the_rehearsal_is_as_long_as_the_real_run_and_never_steals_what_is_not_there(
    outside: Outside, cache: Path
) -> None:
    lake, held_out = module._divide(outside, 0.25, STREAM)
    assert (len(lake), len(held_out)) == (30, 48)
    trained_on = {image.tobytes() for image in np.asarray(lake.images)}
    assert not trained_on & {image.tobytes() for image in np.asarray(held_out.images)}
    assert module._training(outside, None, len(lake)).steps(len(lake)) == 60
    assert module._training(outside, 5, len(lake)).epochs == 5
    assert module._smaller(ATTACK, None, 30).settings.images == 16
    assert module._smaller(ATTACK, 64, 30).settings.images == 30
    fit = ATTACK.settings.model_copy(update={"images": "fit"})
    assert module._smaller(Transpose(fit), None, 30).settings.images == "fit"


def test_what_is_wrong_is_said(outside: Outside, cache: Path) -> None:
    few = replace(outside, public=outside.public.subset(np.arange(7)))
    with pytest.raises(FlSimError, match="public_images to 8 or more"):
        played(few)
    played(outside)
    file = next(cache.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(FlSimError, match="delete that file"):
        played(outside)
    file.write_bytes(content)
    with pytest.raises(FlSimError, match="affine_robust"):
        parse(AttackerSettings, {"restorations": ["afine_robust"]}, "[attacker]")


def test_what_is_learned_from_a_rehearsal_restores_other_images(
    outside: Outside, cache: Path
) -> None:
    result = played(outside)
    public, _ = outside.public.tensors()
    learned = learn(result.after, result.originals, public, STREAM, steps=60)
    restored = learned(result.after[0], public)
    better = (restored - result.originals).abs().mean()
    plain = (affine(result.after[0], public) - result.originals).abs().mean()
    assert float(better) < 0.95 * float(plain)
