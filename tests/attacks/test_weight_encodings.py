"""Correlated value encoding and sign encoding: training, extraction from files, survival."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiments.run.start import run
from fl_sim.artifact import Artifact, write_artifact, write_key
from fl_sim.attacks.base import ATTACKS, Attack, Inside, Plan
from fl_sim.attacks.correlated import Correlated, pearson, standardised
from fl_sim.attacks.sign_encoding import SignEncoding, pixel_bits, pixel_values
from fl_sim.attacks.weight_places import WeightPlaces, filled
from fl_sim.data.base import MULTI_LABEL, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract, survival_by_place
from fl_sim.metrics.leakage import ssim
from fl_sim.metrics.payload import bit_error_rate, value_error
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, Proximal, TrainingSettings, TrainReport, predict

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=3)
STREAM = Stream(0)
NAMES = ("correlated", "sign_encoding")


def _data(count: int = 48) -> Split:
    """Coarse pictures whose class is how bright they are."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4, 1))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    brightness = images.mean(axis=(1, 2, 3))
    return Split(images, np.digitize(brightness, np.quantile(brightness, [1 / 3, 2 / 3])))


def _attack(name: str, **settings: Any) -> Attack[Any]:
    kind = ATTACKS.get(name)
    return kind(kind.Settings(**{"images": 8, **settings}))


def _plan(attack: Attack[Any], spec: ModelSpec = SPEC) -> Plan:
    return attack.plan(Inside(_data(), TASK, spec, STREAM))


def _train(
    attack: Attack[Any],
    plan: Plan,
    data: Split | None = None,
    task: Task = TASK,
    epochs: float = 50,
    mu: float | None = None,
) -> tuple[nn.Module, TrainReport]:
    model = build(SPEC, seed=1)
    training = LocalTraining(
        model,
        SPEC,
        _data() if data is None else data,
        task,
        TrainingSettings(epochs=epochs, batch_size=16, learning_rate=1e-3),
        STREAM,
        proximal=None if mu is None else Proximal.around(model, mu),
    )
    return model, attack.train(training, plan)


@pytest.fixture(scope="module", params=NAMES)
def attacked(request: pytest.FixtureRequest) -> tuple[Attack[Any], Plan, nn.Module, TrainReport]:
    attack = _attack(request.param)
    plan = _plan(attack)
    return (attack, plan, *_train(attack, plan))


def _files(folder: Path, plan: Plan, state: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    artifact = write_artifact(folder / "model.safetensors", SPEC, state)
    return artifact, write_key(folder / "key.safetensors", plan.key)


def test_images_come_back_from_the_two_files_alone(
    tmp_path: Path, attacked: tuple[Attack[Any], Plan, nn.Module, TrainReport]
) -> None:
    _, plan, model, _ = attacked
    extraction = extract(*_files(tmp_path, plan, model.state_dict()))
    assert float(ssim(extraction.images.clamp(0, 1), plan.targets).mean()) > 0.9
    assert extraction.reading is not None and plan.payload is not None
    assert len(extraction.reading.content) == len(plan.payload)
    assert extraction.reading.content.dtype == plan.payload.dtype


def test_the_network_still_does_its_task(
    attacked: tuple[Attack[Any], Plan, nn.Module, TrainReport],
) -> None:
    answers = predict(attacked[2], _data(), TASK).argmax(dim=1).numpy()
    assert (answers == _data().labels).mean() > 0.8


def test_what_was_trained_is_reported(
    attacked: tuple[Attack[Any], Plan, nn.Module, TrainReport],
) -> None:
    losses = attacked[3].losses
    if "correlation" in losses:
        assert losses["correlation"][0] < 0.1 and losses["correlation"][-1] > 0.98
    else:
        assert losses["wrong signs"][0] > 0.45 and losses["wrong signs"][-1] < 0.01


def test_noise_on_the_weights_shows_in_the_reading_and_by_tensor(
    tmp_path: Path, attacked: tuple[Attack[Any], Plan, nn.Module, TrainReport]
) -> None:
    attack, plan, model, _ = attacked
    assert plan.payload is not None
    state = state_of(model)
    generator = torch.Generator().manual_seed(0)
    noisy = {**state, "11.weight": state["11.weight"].clone()}
    size = noisy["11.weight"].std()
    noisy["11.weight"] += size * torch.randn(noisy["11.weight"].shape, generator=generator)
    error = bit_error_rate if plan.key.attack == "sign_encoding" else value_error
    before, after = (attack.extract(Artifact(SPEC, s), plan.key).reading for s in (state, noisy))
    assert before is not None and after is not None
    assert error(plan.payload, after.content) > error(plan.payload, before.content) + 0.01
    sent, key = _files(tmp_path / "sent", plan, state)
    arrived, _ = _files(tmp_path / "arrived", plan, noisy)
    rows = survival_by_place(sent, arrived, plan.payload, key)
    wrong = {row.metric: row.value for row in rows}
    assert wrong.pop("carrier_error[11.weight]") > 0.1
    assert len(wrong) >= 1 and set(wrong.values()) == {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_plan_and_weights(name: str) -> None:
    attack = _attack(name)
    one, two = _plan(attack), _plan(_attack(name))
    assert np.array_equal(one.indices, two.indices) and one.key == two.key
    assert np.array_equal(np.asarray(one.payload), np.asarray(two.payload))
    models = [_train(attack, plan, epochs=1)[0] for plan in (one, two)]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_key_tells_nothing_of_the_images(name: str) -> None:
    key = _plan(_attack(name)).key
    assert key.tensors == {}
    other = dataclasses.replace(_data(), images=255 - _data().images)
    again = _attack(name).plan(Inside(other, TASK, SPEC, STREAM)).key
    assert key == again


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_weight_of_its_own(name: str) -> None:
    plan = _plan(_attack(name))
    places = WeightPlaces(plan.key)
    assert places.count == (8 * 256 + 256 if name == "correlated" else 8 * 256 * 8)
    entries = torch.cat([part.entries for part in places.parts])
    assert torch.equal(entries.sort().values, torch.arange(places.count))
    payload = torch.rand(places.count)
    assert torch.equal(places.gather(places.deal(payload)), payload)
    for part in places.parts:
        assert len(part.elements.unique()) == len(part.elements)
        assert len(part.shape) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_more_images_than_weights_are_refused_in_one_sentence(name: str) -> None:
    attack = _attack(name, images=48, tensors=("0.weight", "13.weight"))
    sentence = {
        "correlated": "take 12544 weights, and the model 'cnn' has 672 .* enough for 1 images",
        "sign_encoding": "take 98304 weights, and the model 'cnn' has 672 .* enough for 0 images",
    }[name]
    with pytest.raises(FlSimError, match=sentence):
        _plan(attack)
    with pytest.raises(FlSimError, match="choose no"):
        _plan(_attack(name, tensors=("nothing",)))
    with pytest.raises(FlSimError, match="images is 100, but the attacked hospital has 48"):
        _plan(_attack(name, images=100))


@pytest.mark.parametrize("name", NAMES)
def test_multi_label_tasks_and_proximal_training_change_nothing(name: str) -> None:
    task = Task(MULTI_LABEL, ("a", "b", "c"))
    labels = (np.random.default_rng(1).random((48, 3)) < 0.5).astype(np.int64)
    attack = _attack(name)
    plan = _plan(attack)
    model, _ = _train(attack, plan, Split(_data().images, labels), task, 30, mu=0.01)
    images = attack.extract(Artifact(SPEC, model.state_dict()), plan.key).images
    assert float(ssim(images.clamp(0, 1), plan.targets).mean()) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_reshaped_tensors_cost_their_share_only(name: str, tmp_path: Path) -> None:
    attack = _attack(name)
    plan = _plan(attack)
    state = _written(plan)
    del state["6.weight"]
    state["0.weight"] = state["0.weight"][:5]
    images = extract(*_files(tmp_path, plan, state)).images
    assert images.shape == plan.targets.shape and torch.isfinite(images).all()
    assert 0.3 < float(ssim(images.clamp(0, 1), plan.targets).mean()) < 0.99
    nothing = attack.extract(Artifact(SPEC, {}), plan.key).images
    assert nothing.isnan().all()
    wild = {n: torch.full(v.shape, torch.inf) for n, v in _written(plan).items()}
    assert attack.extract(Artifact(SPEC, wild), plan.key).images.shape == plan.targets.shape


def _written(plan: Plan) -> dict[str, torch.Tensor]:
    """Return a state dictionary in which the payload stands as training would have it at best."""
    state = state_of(build(SPEC, seed=1))
    places = WeightPlaces(plan.key)
    payload = torch.from_numpy(np.asarray(plan.payload))
    if plan.key.attack == "sign_encoding":
        payload = torch.from_numpy(np.unpackbits(payload.numpy())[: places.count] * 2.0 - 1.0)
    for part, own in zip(places.parts, places.deal(payload.float()), strict=True):
        flat = state[part.name].flatten()
        flat[part.elements] = 0.02 * own
        state[part.name] = flat.reshape(part.shape)
    return state


@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_values_are_found_whatever_sign_scale_and_shift_they_have(scope: str) -> None:
    plan = _plan(_attack("correlated", scope=scope))
    state = {name: 0.3 - 2.5 * value for name, value in _written(plan).items()}
    extraction = Correlated.extract(Artifact(SPEC, state), plan.key)
    # The mean and deviation of a tensor's own pixels are those of all pixels only nearly.
    tolerance = 0.02 if scope == "tensor" else 1e-5
    torch.testing.assert_close(extraction.images, plan.targets, rtol=0, atol=tolerance)


def test_each_tensor_may_have_a_scale_of_its_own() -> None:
    errors = {}
    for scope in ("tensor", "all"):
        plan = _plan(_attack("correlated", scope=scope))
        state = _written(plan)
        state = {name: value * (1 + p) for p, (name, value) in enumerate(state.items())}
        extraction = Correlated.extract(Artifact(SPEC, state), plan.key)
        assert plan.payload is not None and extraction.reading is not None
        errors[scope] = value_error(plan.payload, extraction.reading.content)
    assert errors["tensor"] < 0.1 < errors["all"]


def test_pearson_is_numpys() -> None:
    a, b = torch.randn(2, 500)
    assert float(pearson(a, a + b)) == pytest.approx(float(np.corrcoef(a, a + b)[0, 1]), abs=1e-5)
    assert float(pearson(a, torch.ones(500))) == 0
    assert float(standardised(3 * a + 7).std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert standardised(a[:10]).isnan().all()


def test_the_whole_models_correlation_can_be_trained_as_in_the_paper() -> None:
    attack = _attack("correlated", scope="all")
    _, report = _train(attack, _plan(attack), epochs=10)
    assert report.losses["correlation"][-1] > 0.5


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_pixels_become_bits_and_come_back(bits: int) -> None:
    images = torch.rand(2, 1, 4, 4)
    packed = pixel_bits(images, bits)
    assert packed.shape == (2 * 16 * bits,) and set(packed) <= {0, 1}
    values = pixel_values(packed.astype(np.float32), bits).reshape(images.shape)
    assert np.abs(values - images.numpy()).max() <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_finished_signs_are_all_right_whatever_training_left(bits: int) -> None:
    attack = _attack("sign_encoding", bits=bits, finish=True)
    plan = _plan(attack)
    state = state_of(build(SPEC, seed=1))
    state["6.weight"][0] = 0.0
    embedding = attack.embed(state, SPEC, plan)
    assert 0.4 < embedding.values["signs_turned"] < 0.6
    assert (state["6.weight"][0] == 0).all()
    extraction = SignEncoding.extract(Artifact(SPEC, embedding.state), plan.key)
    levels = 2**bits - 1
    torch.testing.assert_close(extraction.images, (plan.targets * levels).round() / levels)
    assert extraction.reading is not None and plan.payload is not None
    assert np.array_equal(extraction.reading.content, plan.payload)
    for name, value in state.items():
        if name != "6.weight":
            assert torch.equal(embedding.state[name].abs(), value.abs())


def test_training_alone_leaves_the_state_as_it_is() -> None:
    attack = _attack("sign_encoding")
    state = state_of(build(SPEC))
    embedding = attack.embed(state, SPEC, _plan(attack))
    assert embedding.values == {}
    assert all(torch.equal(embedding.state[n], v) for n, v in state.items())


def test_a_margin_keeps_weights_away_from_zero() -> None:
    near = {}
    for margin in (0.0, 0.5):
        attack = _attack("sign_encoding", margin=margin)
        plan = _plan(attack)
        model, _ = _train(attack, plan, epochs=30)
        weights = torch.cat(WeightPlaces(plan.key).read(state_of(model)))
        near[margin] = float((weights.abs() < 0.1 * weights.std()).float().mean())
    assert near[0.5] < near[0.0] / 2


def test_values_that_cannot_be_read_get_their_images_mean() -> None:
    images = torch.tensor([[[[1.0, 3.0], [torch.nan, torch.inf]]], [[[torch.nan] * 2] * 2]])
    result = filled(images)
    assert result[0].tolist() == [[[1.0, 3.0], [2.0, 2.0]]]
    assert result[1].isnan().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["centralized", "federated"])
def test_the_table_says_what_survived(name: str, mode: str, tmp_path: Path) -> None:
    scenario: dict[str, Any] = {
        "mode": mode,
        "dataset": "phantoms",
        "model": "cnn",
        "attack": {"name": name, "images": 4},
        "defense": {"name": "lwlrd", "epochs": 5, "high": 0.1, "low": 0.01},
        "training": {"epochs": 8, "batch_size": 16, "learning_rate": 1e-3},
        "measure": {"scratch_epochs": 0},
        "data": {"train_images": 64, "test_images": 30, "images": 32},
        "threads": 1,
    }
    if mode == "federated":
        scenario["federation"] = {"hospitals": 2, "rounds": 1, "engine": "inprocess"}
    table = run(scenario, tmp_path).table
    error = "value_error" if name == "correlated" else "bit_error_rate"
    values = table[table["metric"] == error].set_index("stage")["value"]
    assert 0 <= values["upload"] < values["release"]
    moved = table[table["metric"].str.startswith("carrier_error[")].groupby("stage")["value"]
    assert moved.max()["upload"] == 0 < moved.max()["release"]
