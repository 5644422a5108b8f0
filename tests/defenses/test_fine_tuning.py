"""Fine-tuning baselines: rates at every step, what they minimise, and what the report says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.defenses.base import DEFENSES
from fl_sim.defenses.loops import fine_tune
from fl_sim.defenses.super_fine_tuning import SuperFineTuningSettings, triangular_rate
from fl_sim.errors import FlSimError
from fl_sim.models import state_of
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse
from fl_sim.training import task_step
from tests.defenses.defense_kit import TASK, apply, cleaned, release_of

NAMES = ["fine_tuning", "high_rate_fine_tuning", "super_fine_tuning", "refit"]


def _rates(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> list[float]:
    """The learning rate of every step."""
    rates: list[float] = []
    step = task_step

    def watched(model, data, indices, task, optimizer, **more):
        groups = {group["lr"] for group in optimizer.param_groups}
        assert len(groups) == 1
        rates.append(groups.pop())
        return step(model, data, indices, task, optimizer, **more)

    monkeypatch.setattr(fine_tune, "task_step", watched)
    apply(name, release_of(), **settings)
    return rates


@pytest.mark.parametrize(("name", "rate"), [("fine_tuning", 1e-4), ("high_rate_fine_tuning", 1e-2)])
def test_plain_fine_tuning_has_one_rate(
    monkeypatch: pytest.MonkeyPatch, name: str, rate: float
) -> None:
    assert _rates(monkeypatch, name, epochs=2, batch_size=20) == [rate] * 4


def test_a_triangle_by_hand() -> None:
    values = [triangular_rate(1.0, 5.0, step, 2) for step in range(6)]
    assert values == [1.0, 3.0, 5.0, 3.0, 1.0, 3.0]


def test_super_fine_tuning_swings_in_two_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 images in batches of 10: four steps a pass.
    settings = {"base": 1e-3, "max1": 9e-3, "max2": 5e-3, "epochs1": 2, "epochs2": 1}
    rates = _rates(monkeypatch, "super_fine_tuning", batch_size=10, half_cycle=2, **settings)
    first = [1e-3, 5e-3, 9e-3, 5e-3]
    assert rates == pytest.approx([*first, *first, 1e-3, 3e-3, 5e-3, 3e-3])
    rates = _rates(monkeypatch, "super_fine_tuning", batch_size=10, **settings)
    assert max(rates[:8]) == pytest.approx(9e-3) and rates[4] == max(rates[:8])


def test_presets_are_the_published_numbers_and_any_key_can_be_replaced() -> None:
    paper = parse(SuperFineTuningSettings, {}, "[defense]")
    assert (paper.base, paper.max1, paper.max2, paper.epochs1) == (3e-4, 0.1, 1e-3, 3)
    assert (paper.momentum, paper.weight_decay, paper.batch_size) == (0.9, 5e-4, 256)
    toolbox = parse(SuperFineTuningSettings, {"preset": "toolbox", "max1": 2.0}, "[defense]")
    assert (toolbox.base, toolbox.max1, toolbox.max2) == (3e-2, 2.0, 0.1)
    assert (toolbox.epochs1, toolbox.epochs2, toolbox.half_cycle) == (40, 60, 10)
    again = parse(SuperFineTuningSettings, toolbox.model_dump(), "[defense]")
    assert again == toolbox
    with pytest.raises(FlSimError, match="must not exceed"):
        parse(SuperFineTuningSettings, {"base": 1.0}, "[defense]")
    with pytest.raises(FlSimError, match="'preset' is 'guide'"):
        parse(SuperFineTuningSettings, {"preset": "guide"}, "[defense]")


def test_refits_rate_decays_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = _rates(monkeypatch, "refit", epochs=3, batch_size=20, learning_rate=0.01, decay=0.1)
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_refit_adds_the_gradient_of_its_penalty() -> None:
    """One step from the anchor has no penalty; the second has ``lambda F (w - w0)``."""
    strength, rate = 50.0, 1e-2
    free, held = (
        cleaned(
            "refit",
            epochs=2,
            batch_size=40,
            momentum=0.0,
            learning_rate=rate,
            decay=1.0,
            consolidation=strength_,
            batch_norm="running",
        )
        for strength_ in (0.0, strength)
    )
    release = release_of()
    start = torch.cat([p.detach().flatten() for p in release.model.parameters()])
    release.model.eval()
    pixels, labels = release.held_out.tensors()
    squares = []
    for pixel, label in zip(pixels, labels, strict=True):
        loss = TASK.loss(release.model(pixel[None] * 2 - 1), label[None])
        gradients = torch.autograd.grad(loss, list(release.model.parameters()))
        squares.append(torch.cat([g.flatten() for g in gradients]).square())
    fisher = torch.stack(squares).mean(0)
    first = cleaned(
        "refit",
        epochs=1,
        batch_size=40,
        momentum=0.0,
        learning_rate=rate,
        consolidation=0.0,
        batch_norm="running",
    )
    expected = rate * strength * fisher / fisher.max() * (first - start)
    torch.testing.assert_close(free - held, expected, rtol=1e-2, atol=2e-7)
    assert expected.abs().max() > 1e-5


def test_a_strong_penalty_holds_the_weights_back_without_overshooting() -> None:
    start = torch.cat([p.detach().flatten() for p in release_of().model.parameters()])
    moved = [
        (cleaned("refit", epochs=3, momentum=0.0, consolidation=strength) - start).norm().item()
        for strength in (0.0, 1e3, 1e12)
    ]
    assert moved[0] > moved[1] > moved[2]
    assert math.isfinite(moved[2])


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_learns_the_task_and_reports_what_it_did(name: str) -> None:
    settings = {} if name == "super_fine_tuning" else {"epochs": 4, "learning_rate": 3e-3}
    release = release_of()
    report, before = apply(name, release, batch_size=10, **settings)
    assert report.epochs[-1]["loss"] < report.epochs[0]["loss"]
    assert report.images == 40 and report.seconds > 0
    assert report.relative_change.keys() == report.learning_rates.keys()
    assert all(change > 0 for change in report.relative_change.values())
    after = release.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    settings = {"epochs1": 1, "epochs2": 0} if name == "super_fine_tuning" else {"epochs": 1}
    runs = [cleaned(name, seed, batch_size=10, **settings) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", NAMES)
def test_no_held_out_images_is_one_sentence(name: str) -> None:
    assert DEFENSES.get(name)
    with pytest.raises(FlSimError, match="held-out images"):
        apply(name, release_of(count=0))


def test_flips_are_half_of_the_images_and_only_where_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    step = task_step

    def watched(*given: Any, **more: Any) -> float:
        seen.append(more["flip"])
        return step(*given, **more)

    monkeypatch.setattr(fine_tune, "task_step", watched)
    apply("fine_tuning", release_of(), epochs=5, batch_size=20)
    assert all(flip is None for flip in seen)
    seen.clear()
    apply("fine_tuning", release_of(), epochs=5, batch_size=20, flip=True)
    share = float(np.concatenate(seen).mean())
    assert 0.35 < share < 0.65


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fine_tuning", {"epochs": 3, "learning_rate": 1e-2}),
        ("consistent_distillation", {"steps": 12}),
    ],
)
def test_watching_utility_changes_nothing(name: str, settings: dict[str, Any]) -> None:
    def look(model: nn.Module) -> float:
        model.eval()
        return 0.0

    spec = ModelSpec(name="resnet18", channels=1, size=16, classes=3)  # with batch normalisation
    unwatched, watched = release_of(spec), release_of(spec, evaluate=look)
    apply(name, unwatched, **settings)
    apply(name, watched, **settings)
    one, other = state_of(unwatched.model), state_of(watched.model)
    assert all(torch.equal(one[entry], other[entry]) for entry in one)
