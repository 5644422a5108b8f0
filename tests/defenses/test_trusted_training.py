"""Controls and blind fixes: trusted training, dead weights drawn anew, noise in the last layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_sim.carriers.dead import dead_weights
from fl_sim.defenses.base import Release
from fl_sim.defenses.loops import fine_tune
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.training import task_step
from tests.defenses.defense_kit import SPEC, TASK, apply, held_out, release_of


def _seen(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Return what becomes the set of all images that steps of fine-tuning take."""
    seen: set[bytes] = set()
    step = task_step

    def watched(model, data, indices, *rest, **more):
        seen.update(data.images[i].tobytes() for i in indices)
        return step(model, data, indices, *rest, **more)

    monkeypatch.setattr(fine_tune, "task_step", watched)
    return seen


@pytest.mark.parametrize("images", ["held_out", "training", "all"])
@pytest.mark.parametrize("name", ["fine_tuning", "lwlrd", "scratch", "trusted_training"])
def test_a_defence_takes_the_images_that_it_says(
    monkeypatch: pytest.MonkeyPatch, name: str, images: str
) -> None:
    seen = _seen(monkeypatch)
    given = release_of(count=12)
    training = held_out(20, SPEC.size)
    training = replace(training, images=255 - training.images)
    apply(name, replace(given, training=training), images=images, batch_size=8, max_steps=8)
    parts = {"held_out": [given.held_out], "training": [training]}
    wanted = parts.get(images, [given.held_out, training])
    assert seen == {image.tobytes() for part in wanted for image in part.images}


def test_who_has_no_training_images_is_told() -> None:
    with pytest.raises(FlSimError, match="the server of a federation has not"):
        apply("trusted_training", release_of(count=12))


def test_nothing_of_the_model_gets_into_a_trusted_one() -> None:
    left = []
    for seed in (1, 2):
        given = replace(release_of(count=12), model=build(SPEC, seed), training=held_out(20, 16))
        given.entries["more"] = torch.ones(3)
        apply("trusted_training", given, max_steps=3)
        assert not given.entries
        left.append(state_of(given.model))
    assert all(torch.equal(left[0][name], left[1][name]) for name in left[0])


def test_steps_replace_passes_and_the_cosine_ends_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    given = release_of(count=12)
    rates = []
    step = task_step

    def watched(model, data, indices, task, optimizer, **more):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(model, data, indices, task, optimizer, **more)

    monkeypatch.setattr(fine_tune, "task_step", watched)
    cosine = {"max_steps": 200, "schedule": "cosine", "views": "square", "mixup": 1.0}
    report, _ = apply("lwlrd", given, **cosine)
    assert len(rates) == 200
    assert rates[-1][0] < 1e-6 < rates[60][0]
    assert rates[60][0] > rates[60][-1]  # the decay over layers stays
    assert len(report.epochs) == 200  # twelve images are one batch


def test_dead_weights_are_drawn_anew_and_answers_stay() -> None:
    spec = ModelSpec(name="resnet18", channels=3, size=28, classes=3)
    model = build(spec, 0).eval()
    before = state_of(model)
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = model(images)
    given = Release(model, spec, held_out(4, 28), TASK, release_of().stream)
    report, _ = apply("dead_weights", given)
    after, dead = state_of(model), dead_weights(spec)
    assert dead
    for name, tensor in after.items():
        changed = tensor != before[name]
        assert torch.equal(changed, dead.get(name, torch.zeros_like(changed)))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), answers)
    assert report.figures["dead_weights_drawn"] == sum(int(mask.sum()) for mask in dead.values())
    name, mask = max(dead.items(), key=lambda item: int(item[1].sum()))
    ratio = float(after[name][mask].std() / after[name][~mask].std())
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_late_noise_turns_signs_at_the_end_only() -> None:
    spec = ModelSpec(name="resnet18", channels=3, size=28, classes=3)
    model = build(spec, 0)
    before = state_of(model)
    given = Release(model, spec, held_out(4, 28), TASK, release_of().stream)
    report, _ = apply("late_noise", given, share=0.4, sigma=0.2)
    turned = {
        n: float((t.signbit() != before[n].signbit()).float().mean())
        for n, t in model.named_parameters()
    }
    assert turned["conv1.weight"] == 0 == turned["layer2.0.conv1.weight"]
    assert turned["layer4.1.conv2.weight"] == pytest.approx(np.arctan(0.2) / np.pi, rel=0.05)
    assert report.figures["signs_turned"] == pytest.approx(np.arctan(0.2) / np.pi, rel=0.05)
    assert report.relative_change["layer4.1.conv2.weight"] == pytest.approx(0.2, rel=0.02)
