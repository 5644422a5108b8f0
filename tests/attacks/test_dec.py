"""The DEC attack: both scenarios, both contents, every carrier, from the two files alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.artifact import Artifact, read_artifact, write_artifact, write_key
from fl_sim.attacks.base import Inside, Plan
from fl_sim.attacks.dec import Dec
from fl_sim.attacks.dec.route import Route, codec_inside
from fl_sim.attacks.dec.settings import DecSettings
from fl_sim.carriers.base import State
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract, survival_by_place
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Status
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings

TASK = Task("multi-class", ("a", "b", "c"))
SPEC = ModelSpec(name="cnn", channels=3, size=28, classes=3)
STREAM = Stream(3, ("hospital", 0))
SMALL = {"name": "factorized", "N": 8, "M": 8, "max_steps": 20, "validate_every": 20}
TWO_HEADED = ModelSpec(name="two_headed", channels=3, size=28, classes=3, settings={"codec": SMALL})
LATENTS = {"contents": "latents", "codec": SMALL, "external": "phantoms"}


def _data(count: int = 40) -> Split:
    from fl_sim.data import load_dataset

    train = load_dataset("phantoms").train
    labels = np.arange(count) % 3
    return Split(train.images[:count], labels.astype(np.int64))


def _settings(**values: Any) -> DecSettings:
    return DecSettings(**{"images": 10, "codec": "png", **values})


def _inside(data: Split | None = None, spec: ModelSpec = SPEC) -> Inside:
    return Inside(_data() if data is None else data, TASK, spec, STREAM)


def _run(spec: ModelSpec, data: Split, epochs: float = 1) -> LocalTraining:
    training = TrainingSettings(epochs=epochs, batch_size=20)
    return LocalTraining(build(spec, seed=1), spec, data, TASK, training, STREAM.at(1))


def _attack(
    tmp_path: Path, settings: DecSettings, spec: ModelSpec = SPEC, data: Split | None = None
) -> tuple[Plan, State, dict[str, float], Path, Path]:
    data = _data() if data is None else data
    attack = Dec(settings)
    plan = attack.plan(_inside(data, spec))
    run = _run(spec, data)
    attack.train(run, plan)
    embedding = attack.embed(state_of(run.model), spec, plan)
    artifact = write_artifact(tmp_path / "model.safetensors", spec, embedding.state)
    key = write_key(tmp_path / "key.safetensors", plan.key)
    return plan, embedding.state, embedding.values, artifact, key


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "dec-cache"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": "gzip", "carrier": {"name": "lsb", "bits": 8}},
        {"carrier": "entries"},
        {"carrier": {"name": "entries", "style": "plausible"}},
        {"carrier": {"name": "lsb", "bits": 10}, "precision": "float16"},
        {"carrier": {"name": "lsb", "bits": 7}, "precision": "bfloat16"},
    ],
)
def test_lossless_images_come_back_bit_for_bit_from_the_files_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan, _, values, artifact, key = _attack(tmp_path, _settings(**changes))
    extraction = extract(artifact, key)
    assert torch.equal(extraction.images, plan.targets)
    assert extraction.reading is not None and extraction.reading.status is not None
    assert (extraction.reading.status == Status.INTACT).all()
    assert values["images_written"] == 10
    assert 0 < values["p_ratio"] < 2


def test_fit_takes_exactly_as_many_images_as_the_carrier_holds(tmp_path: Path) -> None:
    carrier = {"name": "lsb", "bits": 1, "tensors": ["*weight"]}
    settings = _settings(images="fit", codec="gzip", carrier=carrier)
    plan, _, values, artifact, key = _attack(tmp_path, settings)
    assert 0 < len(plan.indices) < 40
    assert values["payload_bytes"] <= values["capacity_bytes"]
    assert torch.equal(extract(artifact, key).images, plan.targets)
    with pytest.raises(FlSimError, match='lower images, or set it to "fit"'):
        Dec(_settings(images=40, codec="gzip", carrier=carrier)).plan(_inside())


def test_the_plan_is_the_same_for_the_same_arguments() -> None:
    one, two = (Dec(_settings()).plan(_inside()) for _ in range(2))
    assert np.array_equal(one.indices, two.indices)
    assert one.payload is not None and two.payload is not None
    assert np.array_equal(one.payload, two.payload)
    assert one.key.settings == two.key.settings


def test_damage_to_some_weights_costs_some_images_and_is_told(tmp_path: Path) -> None:
    plan, state, _, artifact, key = _attack(tmp_path, _settings(carrier={"name": "lsb", "bits": 4}))
    changed = {n: v.clone() for n, v in state.items()}
    generator = torch.Generator().manual_seed(0)
    for name, value in changed.items():
        if value.is_floating_point():
            hit = torch.rand(value.shape, generator=generator) < 2e-4
            value[hit] *= 1.01
            changed[name] = value
    damaged = write_artifact(tmp_path / "damaged.safetensors", SPEC, changed)
    extraction = extract(damaged, key)
    assert extraction.reading is not None and extraction.reading.status is not None
    intact = extraction.reading.status == Status.INTACT
    assert 0 < intact.sum() < 10
    assert torch.equal(extraction.images[intact], plan.targets[intact])
    assert plan.payload is not None
    rows = survival_by_place(artifact, damaged, plan.payload, key)
    errors = {row.metric: row.value for row in rows}
    assert errors and all(0 <= error < 0.05 for error in errors.values())
    assert max(errors.values()) > 0


def test_nothing_of_a_retrained_model_is_read_and_nothing_breaks(tmp_path: Path) -> None:
    _, _, _, _, key = _attack(tmp_path, _settings())
    other = write_artifact(tmp_path / "other.safetensors", SPEC, state_of(build(SPEC, seed=9)))
    extraction = extract(other, key)
    assert extraction.reading is not None and extraction.reading.status is not None
    assert (extraction.reading.status == Status.LOST).all()
    assert extraction.images.shape == (10, 3, 28, 28)
    assert not extraction.images.isfinite().any()


def test_another_seed_of_the_key_reads_nothing(tmp_path: Path) -> None:
    plan, _, _, artifact, _ = _attack(tmp_path, _settings())
    route = {**plan.key.settings["route"], "seed": 1}
    stolen = dataclasses.replace(plan.key, settings={**plan.key.settings, "route": route})
    key = write_key(tmp_path / "guessed.safetensors", stolen)
    reading = extract(artifact, key).reading
    assert reading is not None and (reading.status == Status.LOST).all()


@pytest.mark.parametrize("carrier", ["entries", "weights", "frozen"])
def test_latents_come_back_and_withstand_noise(tmp_path: Path, carrier: str) -> None:
    settings = _settings(images=4, carrier=carrier, **LATENTS)
    _, state, _, artifact, key = _attack(tmp_path, settings)
    clean = extract(artifact, key).images
    assert clean.isfinite().all()
    generator = torch.Generator().manual_seed(0)
    noisy_state = {
        n: v + 1e-3 * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
        for n, v in state.items()
    }
    noisy = write_artifact(tmp_path / "noisy.safetensors", SPEC, noisy_state)
    assert (extract(noisy, key).images - clean).abs().mean() < 0.02


def test_frozen_weights_are_there_before_training_and_stay_while_the_rest_learns() -> None:
    settings = _settings(images=4, carrier="frozen", **LATENTS)
    attack, data = Dec(settings), _data()
    plan = attack.plan(_inside(data))
    run = _run(SPEC, data, epochs=2)
    before = state_of(run.model)
    attack.train(run, plan)
    trained = state_of(run.model)
    embedded = attack.embed(trained, SPEC, plan).state
    # Embedding changes nothing more: the payload was in place all the time.
    assert all(torch.equal(trained[name], embedded[name]) for name in trained)
    changed = [name for name in trained if not torch.equal(trained[name], before[name])]
    assert len(changed) == len(trained)


def test_internal_training_hides_codes_and_decoder_in_the_network(tmp_path: Path) -> None:
    attack, data = Dec(_settings(scenario="internal", images=6)), _data()
    plan = attack.plan(_inside(data, TWO_HEADED))
    assert not plan.key.tensors  # no decoder outside
    run = _run(TWO_HEADED, data, epochs=30)
    attack.train(run, plan)
    embedding = attack.embed(state_of(run.model), TWO_HEADED, plan)
    assert embedding.values["images_written"] == 6
    artifact = write_artifact(tmp_path / "model.safetensors", TWO_HEADED, embedding.state)
    extraction = extract(artifact, write_key(tmp_path / "key.safetensors", plan.key))
    assert extraction.reading is not None and extraction.reading.status is not None
    assert (extraction.reading.status == Status.INTACT).all()
    # Sixteen low bits of the decoder's weights are codes now, and it decodes all the same.
    codec = codec_inside(run.model)
    codec.freeze()
    for image, code in zip(extraction.images, codec.encode(plan.targets), strict=True):
        (undisturbed,) = codec.decode([code], (3, 28, 28))
        assert isinstance(undisturbed, torch.Tensor)
        assert undisturbed.std() > 0.01
        assert (image - undisturbed).abs().mean() < 0.02


def test_internal_training_trains_task_and_codec() -> None:
    attack, data = Dec(_settings(scenario="internal", images=6)), _data()
    plan = attack.plan(_inside(data, TWO_HEADED))
    run = _run(TWO_HEADED, data, epochs=8)
    report = attack.train(run, plan)
    for name in ("task", "codec"):
        losses = report.losses[name]
        assert np.mean(losses[-4:]) < np.mean(losses[:4]), name


def test_an_internal_codec_with_latents_needs_no_tables(tmp_path: Path) -> None:
    settings = _settings(scenario="internal", images=3, contents="latents", carrier="entries")
    _, _, _, artifact, key = _attack(tmp_path, settings, TWO_HEADED)
    assert extract(artifact, key).images.isfinite().all()


def test_the_artifact_still_builds_a_working_network(tmp_path: Path) -> None:
    _, _, _, artifact, _ = _attack(tmp_path, _settings(carrier="entries"))
    read = read_artifact(artifact)
    assert set(read.state) > set(build(SPEC).state_dict())
    assert read.model()(torch.zeros(2, 3, 28, 28)).shape == (2, 3)
    with pytest.raises(FlSimError, match="do not fit"):
        Artifact(SPEC, {n: v for n, v in read.state.items() if "weight" not in n}).model()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": 0}, "a number from 1"),
        ({"images": "all"}, "images"),
        ({"codec": "factorized"}, "has to be trained outside"),
        ({"codec": "gizp"}, "gzip"),
        ({"codec": {"name": "gzip", "lambda": 1}}, "no key 'lambda'"),
        ({"carrier": "lbs"}, "lsb"),
        ({"carrier": "weights"}, "cannot carry codes"),
        ({"contents": "latents", "carrier": "entries"}, "has no latents"),
        ({"contents": "latents", "carrier": "lsb"}, "cannot carry latents"),
        ({"scenario": "internal", "contents": "latents", "carrier": "frozen"}, "before training"),
        ({"codec": 7}, "should be a name or a table"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(FlSimError, match=sentence):
        parse(DecSettings, {"codec": "png", **changes}, "[attack]")


def test_internal_training_needs_the_two_headed_network() -> None:
    with pytest.raises(FlSimError, match="two_headed"):
        Dec(_settings(scenario="internal")).plan(_inside())


def test_a_codec_file_is_taken_as_it_is_and_names_the_scenario_by_content(tmp_path: Path) -> None:
    from fl_sim.codecs.files import save_codec
    from fl_sim.codecs.library import trained_codec
    from fl_sim.component import Component

    codec = trained_codec(
        Component.of(SMALL, "codec").checked(_codecs(), "codec"), Component(name="phantoms"), None
    )
    one, two = (save_codec(tmp_path / name, codec) for name in ("a.safetensors", "b.safetensors"))
    settings = [_settings(codec=str(path)) for path in (one, two)]
    assert settings[0].identity() == settings[1].identity()
    plan, _, _, artifact, key = _attack(tmp_path, settings[0])
    decoded = codec.decode(codec.encode(plan.targets), (3, 28, 28))
    for got, expected in zip(extract(artifact, key).images, decoded, strict=True):
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(got, expected)


def _codecs() -> Any:
    from fl_sim.codec import CODECS

    return CODECS


LDPC = {"name": "ldpc", "rate": 0.5}


def _disturbed(tmp_path: Path, state: State, noise: float) -> Path:
    generator = torch.Generator().manual_seed(0)
    changed = {
        n: v + noise * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
        for n, v in state.items()
    }
    return write_artifact(tmp_path / "disturbed.safetensors", SPEC, changed)


@pytest.mark.parametrize(
    "carrier", [{"name": "qim", "step": 0.05}, {"name": "bit_plane", "first": 20}, {"name": "lsb"}]
)
@pytest.mark.parametrize("coding", ["none", LDPC, {"name": "reed_solomon", "rate": 0.6}])
def test_coded_images_come_back_bit_for_bit(
    tmp_path: Path, carrier: dict[str, Any], coding: Any
) -> None:
    settings = _settings(images=3, codec="png", carrier=carrier, coding=coding)
    plan, _, values, artifact, key = _attack(tmp_path, settings)
    extraction = extract(artifact, key)
    assert torch.equal(extraction.images, plan.targets)
    reading = extraction.reading
    assert reading is not None and plan.payload is not None
    assert np.array_equal(reading.content[: len(plan.payload)], plan.payload)
    assert values["payload_bytes"] <= values["capacity_bytes"]
    assert values["code_rate"] == pytest.approx(values["payload_bytes"] / len(plan.payload))
    assert (reading.corrected is None) == (coding == "none") == (values["code_rate"] == 1)


def test_error_correction_brings_images_through_noise_that_loses_all_of_them(
    tmp_path: Path,
) -> None:
    carrier = {"name": "qim", "step": 0.1}
    intact, errors = [], []
    for coding in ("none", LDPC):
        settings = _settings(images=3, codec="png", carrier=carrier, coding=coding)
        plan, state, _, _, key = _attack(tmp_path, settings)
        extraction = extract(_disturbed(tmp_path, state, 3e-4), key)
        reading = extraction.reading
        assert reading is not None and reading.status is not None and plan.payload is not None
        intact.append(int((reading.status == Status.INTACT).sum()))
        arrived = reading.content[: len(plan.payload)]
        errors.append(float(np.unpackbits(arrived ^ plan.payload).mean()))
    assert intact == [0, 3]
    assert all(0.01 < error < 0.1 for error in errors)
    assert torch.equal(extraction.images, plan.targets)


def test_fit_leaves_room_for_coding_and_parity(tmp_path: Path) -> None:
    counts = []
    for changes in ({}, {"coding": LDPC}, {"coding": LDPC, "erasure": {"data": 4, "parity": 2}}):
        carrier = {"name": "lsb", "bits": 1, "tensors": ["*weight"]}
        settings = _settings(images="fit", codec="png", carrier=carrier, **changes)
        plan, _, values, artifact, key = _attack(tmp_path, settings)
        assert values["payload_bytes"] <= values["capacity_bytes"]
        assert torch.equal(extract(artifact, key).images, plan.targets)
        counts.append(len(plan.indices))
        with pytest.raises(FlSimError, match='lower images, or set it to "fit"'):
            more = _settings(images=counts[-1] + 2, codec="png", carrier=carrier, **changes)
            Dec(more).plan(_inside())
    assert 40 > counts[0] > counts[1] > counts[2] > 0


def test_parity_makes_lost_images_good(tmp_path: Path) -> None:
    results = []
    for erasure in (None, {"data": 5, "parity": 3}):
        carrier = {"name": "lsb", "order": "sequential", "bits": 8}
        settings = _settings(images=10, carrier=carrier, erasure=erasure)
        plan, state, _, _, key = _attack(tmp_path, settings)
        assert plan.payload is not None
        changed = {n: v.clone() for n, v in state.items()}
        places = Route.of(plan.key).open_carrier().places(state, len(plan.payload))
        name = max(places, key=lambda n: int(places[n].sum()))
        middle = int(places[name].sum()) // 2
        changed[name].view(-1)[middle : middle + 400] *= 1.01  # some images' codes, no header
        damaged = write_artifact(tmp_path / "damaged.safetensors", SPEC, changed)
        reading = extract(damaged, key).reading
        assert reading is not None and reading.status is not None
        results.append(int((reading.status == Status.INTACT).sum()))
    assert results[0] < 10 and results[1] == 10


def test_an_internal_payload_is_coded_too(tmp_path: Path) -> None:
    settings = _settings(scenario="internal", images=3, coding=LDPC)
    _, _, values, artifact, key = _attack(tmp_path, settings, TWO_HEADED)
    reading = extract(artifact, key).reading
    assert reading is not None and reading.status is not None
    assert (reading.status == Status.INTACT).all() and values["images_written"] == 3
    assert 0.3 < values["code_rate"] < 0.5


def test_what_cannot_be_decoded_is_told_as_lost(tmp_path: Path) -> None:
    settings = _settings(images=3, codec="png", carrier={"name": "qim"}, coding=LDPC)
    _, _, _, _, key = _attack(tmp_path, settings)
    other = write_artifact(tmp_path / "other.safetensors", SPEC, state_of(build(SPEC, seed=9)))
    reading = extract(other, key).reading
    assert reading is not None and reading.status is not None
    assert (reading.status == Status.LOST).all()
    assert reading.corrected is not None and len(reading.corrected) > 0  # but nothing in it


def test_places_that_follow_from_the_network_reach_the_receiver_in_the_key(tmp_path: Path) -> None:
    spec = ModelSpec(name="resnet18", channels=3, size=28, classes=3)
    settings = _settings(carrier={"name": "lsb", "elements": "dead", "order": "late"})
    attack = Dec(settings)
    plan = attack.plan(_inside(spec=spec))
    state = state_of(build(spec))
    embedded = attack.embed(state, spec, plan).state
    changed = [n for n in state if not torch.equal(state[n], embedded[n])]
    assert changed and all(n.startswith("layer4.1.conv2") for n in changed)
    artifact = write_artifact(tmp_path / "model.safetensors", spec, embedded)
    key = write_key(tmp_path / "key.safetensors", plan.key)
    assert torch.equal(extract(artifact, key).images, plan.targets)
    assert plan.payload is not None
    wrong = Dec.survival(embedded, embedded, plan.payload, plan.key)
    assert set(wrong) == {*changed, *(f"bit {bit}" for bit in range(16))}
    assert set(wrong.values()) == {0.0}


def test_entries_are_told_what_they_carry() -> None:
    assert _settings(carrier="entries").carrier.settings["kind"] == "bytes"
    latents = _settings(carrier="entries", **LATENTS)
    assert latents.carrier.settings["kind"] == "values"
    refused = {"images": 3, "carrier": "weights", "coding": "ldpc", **LATENTS}
    with pytest.raises(FlSimError, match="latents stand noise by themselves"):
        parse(DecSettings, refused, "[attack]")
