"""Defences that put fresh weights in place of the suspect ones."""

import pytest
import torch

from fl_sim.defenses.fine_pruning import accuracy
from fl_sim.defenses.loops.retrain import replace_weights
from fl_sim.errors import FlSimError
from tests.defenses.defense_kit import SPEC, TASK, apply, cleaned, release_of

FAST = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3}


@pytest.mark.parametrize("name", ["scratch", "distillation"])
def test_nothing_of_the_old_weights_is_left(name: str) -> None:
    """With other old weights that answer alike, the new ones are the same to the last bit."""
    runs = []
    for old in (0.0, 1.0):
        release = release_of(entries={"codes": torch.ones(3)})
        parameters = dict(release.model.named_parameters())
        with torch.no_grad():
            parameters["13.weight"].zero_()  # answers by the last bias alone
            parameters["3.weight"].add_(old)
        report, _ = apply(name, release, **FAST)
        assert all(change > 0.01 for change in report.relative_change.values())
        assert report.images == 40 and len(report.epochs) == 3
        assert release.entries == {}
        runs.append(release.model.state_dict())
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_fresh_weights_are_those_of_no_other_release() -> None:
    release, other = release_of(seed=0), release_of(seed=1)
    before = release.model.state_dict()["0.weight"].clone()
    replace_weights(release)
    replace_weights(other)
    after = release.model.state_dict()["0.weight"]
    assert not torch.equal(before, after)
    assert not torch.equal(after, other.model.state_dict()["0.weight"])


def test_the_student_learns_what_only_the_teacher_knows() -> None:
    """The teacher calls the classes by other numbers than the labels do."""
    release = release_of()
    apply("scratch", release, epochs=8, batch_size=8, learning_rate=3e-3)
    assert accuracy(release.model, release.held_out, TASK) > 0.9
    head = release.model[-1]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.roll(1, 0))
    assert accuracy(release.model, release.held_out, TASK) < 0.1
    apply("distillation", release, epochs=8, batch_size=8, learning_rate=3e-3, soft=1.0)
    wrong = release.held_out.subset(range(40))
    wrong = type(wrong)(wrong.images, (wrong.labels + 1) % 3)
    assert accuracy(release.model, wrong, TASK) > 0.8


@pytest.mark.parametrize("name", ["scratch", "distillation"])
def test_the_seed_decides_and_images_are_needed(name: str) -> None:
    runs = [cleaned(name, seed, SPEC, **(FAST | {"epochs": 1})) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    with pytest.raises(FlSimError, match="no held-out images"):
        apply(name, release_of(count=0))
