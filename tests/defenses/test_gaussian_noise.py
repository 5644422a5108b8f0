import pytest
import torch

from fl_sim.data import load_dataset
from fl_sim.defenses.base import Release
from fl_sim.defenses.gaussian_noise import GaussianNoise, GaussianNoiseSettings
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.randomness import Stream

SPEC = ModelSpec(name="cnn", channels=3, size=28, classes=4)


def _apply(sigma: float, scale: str = "absolute", seed: int = 0):
    dataset = load_dataset("phantoms")
    model = build(SPEC)
    before = state_of(model)
    entries = {"payload": torch.zeros(4000), "bytes": torch.zeros(100, dtype=torch.uint8)}
    release = Release(
        model,
        SPEC,
        dataset.validation,
        dataset.task,
        Stream(seed, ("release", 1)),
        entries=entries,
    )
    settings = GaussianNoiseSettings(sigma=sigma, scale=scale)
    report = GaussianNoise(settings).apply(release)
    return before, state_of(model), entries, report, dict(model.named_parameters())


def test_noise_has_the_deviation_asked_for_on_parameters_and_further_float_entries():
    before, after, entries, report, parameters = _apply(0.01)
    for name in parameters:
        noise = after[name] - before[name]
        if noise.numel() > 500:
            assert noise.std().item() == pytest.approx(0.01, rel=0.15)
            assert abs(noise.mean().item()) < 0.01 / noise.numel() ** 0.5 * 4
    assert entries["payload"].std().item() == pytest.approx(0.01, rel=0.1)
    assert (entries["bytes"] == 0).all()
    assert report.relative_change.keys() == parameters.keys()


def test_buffers_keep_their_values():
    before, after, _, _, parameters = _apply(0.5)
    for name in before.keys() - parameters.keys():
        assert torch.equal(before[name], after[name])


def test_relative_noise_follows_each_tensor():
    before, after, _, _, parameters = _apply(0.1, "relative")
    for name in parameters:
        if before[name].numel() > 500:
            ratio = (after[name] - before[name]).std() / before[name].std()
            assert ratio.item() == pytest.approx(0.1, rel=0.15)


def test_noise_is_the_same_for_the_same_seed_and_differs_between_tensors_and_seeds():
    one, two, other = (_apply(0.1, seed=seed)[1] for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_no_noise_changes_nothing():
    before, after, _, report, _ = _apply(0.0)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(report.relative_change.values()) == {0.0}
