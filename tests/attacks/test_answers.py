"""The answers attack: a channel in what a model answers, read from the two files alone."""

import dataclasses
import math
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.answers import Answers
from fl_sim.attacks.answers.channel import (
    FeatureChannel,
    across,
    directions,
    learn_features,
    orientations,
    queries_of,
)
from fl_sim.attacks.answers.frames import framed, unframed
from fl_sim.attacks.answers.memories import MemoryChannel
from fl_sim.attacks.answers.modulation import Modulator, expected_gains, sizes_for
from fl_sim.attacks.answers.settings import AnswersSettings
from fl_sim.attacks.answers.triggers import TriggerChannel
from fl_sim.attacks.answers.writing import Writer, _gain
from fl_sim.attacks.base import Inside, Plan
from fl_sim.codec import CODECS
from fl_sim.codecs.library import trained_codec
from fl_sim.codecs.principal import Principal, PrincipalSettings
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.data.base import MULTI_LABEL, Dataset, Split, Task
from fl_sim.defenses.base import Release
from fl_sim.defenses.consistent_distillation import ConsistentDistillation
from fl_sim.defenses.loops.distil import DistillingSettings
from fl_sim.errors import FlSimError
from fl_sim.metrics.channel import channel_bits
from fl_sim.models import fresh, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Status
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings

SMALL = {"name": "factorized", "N": 8, "M": 8, "max_steps": 20, "validate_every": 20}
OUTSIDE = {"name": "phantoms", "size": 16, "channels": 1, "seed": 9}
SPEC = ModelSpec(name="cnn", channels=1, size=16, classes=4)
STREAM = Stream(0, ("hospital", 0))
SIZES = torch.full((500,), 0.4, dtype=torch.float64)
GIVEN: dict[str, Any] = {
    "images": 1,
    "codec": SMALL,
    "external": OUTSIDE,
    "frame": 11,
    "features": 32,
    "spare": 3,
    "strength": 2.0,
    "preparation": 60,
    "rehearsals": 1,
    "steps": 250,
    "learning_rate": 2e-3,
    "held_out": 200,
    "rehearsed": {"name": "consistent_distillation", "steps": 200},
}


@cache
def _phantoms() -> Dataset:
    return load_dataset(
        "phantoms", {"size": 16, "channels": 1, "train": 500, "validation": 200, "test": 4}
    )


def _inside() -> Inside:
    train = _phantoms().train
    public, own = train.subset(np.arange(120)), train.subset(np.arange(120, 500))
    return Inside(own, _phantoms().task, SPEC, STREAM, public=public)


def _attack(**values: Any) -> Answers:
    return Answers(parse(AnswersSettings, {**GIVEN, **values}, "[attack]"))


def _trained(attack: Answers, epochs: float = 3) -> tuple[Plan, nn.Module]:
    inside = _inside()
    plan = attack.plan(inside)
    training = TrainingSettings(epochs=epochs, batch_size=32, learning_rate=1e-3)
    model = fresh(SPEC, 1)
    run = LocalTraining(model, SPEC, inside.data, inside.task, training, STREAM.at(1))
    attack.train(run, plan)
    return plan, model


@cache
def _attacked(rehearsed: str = "consistent_distillation") -> tuple[Plan, nn.Module]:
    if rehearsed == "none":
        return _trained(_attack(rehearsed="none"))
    return _trained(_attack())


def _released(model: nn.Module, seed: int, **values: Any) -> nn.Module:
    """Return what leaves under consistent distillation, of images that the attacker never saw."""
    leaves = fresh(SPEC, 0)
    leaves.load_state_dict(model.state_dict())
    release = Release(leaves, SPEC, _phantoms().validation, _phantoms().task, Stream(seed))
    ConsistentDistillation(DistillingSettings(**{"steps": 200, **values})).apply(release)
    return leaves


def _bits_through(model: nn.Module, plan: Plan) -> float:
    reading = Answers.extract(Artifact(SPEC, state_of(model)), plan.key).reading
    assert reading is not None and reading.soft is not None and plan.payload is not None
    return channel_bits(plan.payload.astype(np.uint8), reading.soft)


def test_the_handed_over_model_says_every_bit_when_nothing_is_to_come() -> None:
    plan, model = _attacked("none")
    extraction = Answers.extract(Artifact(SPEC, state_of(model)), plan.key)
    assert extraction.reading is not None and extraction.reading.status is not None
    assert _bits_through(model, plan) > 55  # of 88
    assert (extraction.reading.content == plan.payload).mean() > 0.5


@pytest.mark.parametrize("rehearsed", ["none", "consistent_distillation"])
def test_bits_pass_through_a_fresh_student_of_images_that_the_attacker_never_saw(
    rehearsed: str,
) -> None:
    plan, model = _attacked(rehearsed)
    through = [_bits_through(_released(model, seed), plan) for seed in (7, 8, 9)]
    assert np.mean(through) > 9  # of 88; noise looks like a few


def test_nothing_passes_with_labels_only_or_out_of_an_honest_model() -> None:
    plan, model = _attacked()
    honest, fresh_one = _released(model, 7, labels=1.0), fresh(SPEC, 3)
    # Of 88 bits, noise looks like a few now and then.
    assert np.mean([_bits_through(m, plan) for m in (honest, fresh_one)]) < 6


def test_what_a_rehearsal_lost_is_made_up_for() -> None:
    shift = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.linspace(0.9, 0.3, 24).double()[:, None]
    expected = torch.full_like(shift, 0.4)
    gain = _gain(kept * shift, shift, expected)
    assert torch.allclose(gain, kept.expand(24, 3), atol=0.1)
    nothing = torch.zeros_like(shift)
    assert bool((_gain(nothing, shift, expected) > 0).all())  # nothing is divided by zero
    assert torch.equal(_gain(nothing, nothing, expected), expected)


def _channel() -> FeatureChannel:
    inside = _inside()
    assert inside.public is not None
    features = learn_features(inside.public, inside.task, 24, 7, 3)
    return FeatureChannel(features, queries_of(inside.public), multi_label=False)


class _Linear(nn.Module):
    def __init__(self, channel: FeatureChannel, shift: torch.Tensor) -> None:
        super().__init__()
        self.channel, self.shift = channel, shift
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.channel.features((images + 1) / 2)
        return self.scale * across(features @ self.shift.float(), multi_label=False)


def test_coefficients_are_those_that_were_added() -> None:
    channel = _channel()
    shift = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    read = channel.coefficients(_Linear(channel, shift))
    # The ridge takes a hundredth.
    assert torch.allclose(read, shift / 1.01, atol=0.02)


def test_features_are_white_and_leave_the_classes_means_alone() -> None:
    inside = _inside()
    assert inside.public is not None
    pixels, labels = inside.public.tensors()
    features = learn_features(inside.public, inside.task, 24, 7, 3)
    values = features(orientations(pixels))
    covariance = values.T @ values / len(values)
    assert torch.allclose(covariance, torch.eye(24), atol=1e-3)
    means = [values[labels.repeat(8) == label].mean(dim=0) for label in range(4)]
    assert float(torch.stack(means).abs().max()) < 1e-3


def test_directions_are_orthonormal_and_sum_to_zero() -> None:
    basis = directions(7, multi_label=False)
    assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-6)
    assert float(basis.sum(dim=0).abs().max()) < 1e-6
    assert torch.equal(directions(3, multi_label=True), torch.eye(3))


@pytest.mark.parametrize("kind", ["lattice", "sign"])
def test_what_is_placed_is_read_whatever_was_there(kind: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    natural = 5 * torch.randn(500, generator=generator, dtype=torch.float64)
    bits = torch.randint(0, 2, (500,), generator=generator)
    modulator = Modulator(kind, SIZES, seed=3)
    placed = modulator.place(natural, bits)
    assert np.array_equal(modulator.soft(placed) > 0, bits.numpy() == 1)
    moved = (placed - natural).abs()
    if kind == "lattice":
        assert float(moved.max()) <= 0.2 + 1e-9
        # What lies by a quarter of the period beside its point is still read right.
        assert np.array_equal(modulator.soft(placed + 0.099) > 0, bits.numpy() == 1)
        assert not np.array_equal(modulator.soft(placed + 0.101) > 0, bits.numpy() == 1)
    else:
        assert float(moved.mean()) > 1  # the price of knowing no lattice


def test_lattices_are_secret() -> None:
    natural = torch.zeros(400, dtype=torch.float64)
    bits = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(0))
    placed = Modulator("lattice", SIZES, seed=3).place(natural, bits)
    guessed = Modulator("lattice", SIZES, seed=4).soft(placed) > 0
    assert 0.35 < float((guessed == (bits.numpy() == 1)).mean()) < 0.65


def test_frames_come_back_and_tell_damage() -> None:
    codec = trained_codec(
        Component.of(SMALL, "codec").checked(CODECS, "codec"), Component.of(OUTSIDE, "data"), None
    )
    images, _ = _phantoms().train.batch(np.arange(3))
    codes = codec.encode(images)
    frame = max(map(len, codes)) + 5
    content = framed(codes, frame, codec)
    assert len(content) == 3 * frame
    decoded, status = unframed(content, 3, frame, codec, (1, 16, 16))
    assert status.tolist() == [Status.INTACT] * 3
    assert torch.equal(decoded[1], codec.decode([codes[1]], (1, 16, 16))[0])
    broken = content.copy()
    broken[frame + 3] ^= 1
    _, status = unframed(broken, 3, frame, codec, (1, 16, 16))
    assert status[0] == status[2] == Status.INTACT and status[1] != Status.INTACT
    for seed in range(20):  # whatever arrives is an image or lost, never an exception
        noise = np.random.default_rng(seed).integers(0, 256, 3 * frame, dtype=np.uint8)
        unframed(noise, 3, frame, codec, (1, 16, 16))


def test_frames_of_codes_of_one_length_cost_a_byte_more() -> None:
    codec = Principal(PrincipalSettings(bytes=4))
    images, _ = _phantoms().train.batch(np.arange(40))
    codec.fit(images, images, Stream(0, ()))
    content = framed(codec.encode(images[:3]), 5, codec)
    assert len(content) == 3 * 5
    decoded, status = unframed(content, 3, 5, codec, (1, 16, 16))
    assert status.tolist() == [Status.INTACT] * 3
    assert torch.equal(decoded[2], codec.decode(codec.encode(images[2:3]), (1, 16, 16))[0])
    content = content.copy()
    content[7] ^= 1
    _, status = unframed(content, 3, 5, codec, (1, 16, 16))
    assert status.tolist() == [Status.INTACT, Status.DAMAGED, Status.INTACT]


def test_a_codec_can_be_fitted_to_the_public_images() -> None:
    codec = {"name": "principal", "bytes": 4}
    attack = _attack(images=2, codec=codec, external="public", frame=5)
    assert attack.outside_data == () and attack.prepared_outside is None
    plan = attack.plan(_inside())
    assert plan.content is not None and len(plan.content) == 10
    own = {name for name in plan.key.tensors if name.startswith("codec.")}
    assert own == {f"codec.{name}" for name in ("mean", "axes", "scales", "bits", "levels")}
    other = attack.plan(dataclasses.replace(_inside(), public=_phantoms().validation))
    assert not torch.equal(plan.key.tensors["codec.mean"], other.key.tensors["codec.mean"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": 48}, "lower features"),
        ({"frame": 20}, "hold 96"),
        ({"frame": 5}, "raise frame"),
        ({"images": 1000}, "lower it or give"),
    ],
)
def test_what_cannot_be_is_said_before_training(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FlSimError, match=message):
        _attack(**values).plan(_inside())


@pytest.mark.parametrize("count", [None, 5])
def test_without_public_images_nothing_can_be_asked(count: int | None) -> None:
    inside = _inside()
    few = None if count is None else inside.data.subset(np.arange(count))
    with pytest.raises(FlSimError, match="public_images"):
        _attack().plan(dataclasses.replace(inside, public=few))


def test_a_segmentation_is_refused() -> None:
    inside = dataclasses.replace(_inside(), task=Task("segmentation", ("a", "b")))
    with pytest.raises(FlSimError, match="class scores"):
        _attack().plan(inside)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codec": "factorized", "external": None}, "trained outside"),
        ({"modulation": "signs"}, "modulation"),
        ({"rehearsed": "lwlrdd"}, "lwlrd"),
        ({"coding": "ldpcc"}, "ldpc"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FlSimError, match=message):
        _attack(**values)


def test_several_labels_an_image_have_a_direction_each() -> None:
    inside = _inside()
    labels = np.eye(4, dtype=np.int64)[np.asarray(inside.data.labels)]
    data = Split(inside.data.images, labels)
    assert inside.public is not None
    public = Split(inside.public.images, np.eye(4, dtype=np.int64)[inside.public.labels])
    task = Task(MULTI_LABEL, ("a", "b", "c", "d"))
    attack = _attack(frame=12, features=24, rehearsed="none")
    plan = attack.plan(Inside(data, task, SPEC, STREAM, public=public))
    model = fresh(SPEC, 1)
    training = TrainingSettings(epochs=1, batch_size=32)
    attack.train(LocalTraining(model, SPEC, data, task, training, STREAM.at(1)), plan)
    reading = Answers.extract(Artifact(SPEC, state_of(model)), plan.key).reading
    assert reading is not None and reading.soft is not None and plan.payload is not None
    assert len(reading.soft) == 96 == 24 * 4
    assert channel_bits(plan.payload.astype(np.uint8), reading.soft) > 48


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key.tensors.pop("queries"),
        lambda key: key.tensors.update(mean=torch.full_like(key.tensors["mean"], math.nan)),
        lambda key: key.tensors.update(projection=key.tensors["projection"][:, :2]),
        lambda key: key.tensors.update(extra=torch.zeros(1)),
        lambda key: key.settings.update(side=6),
        lambda key: key.settings.update(images=10**9),
        lambda key: key.settings.update(size=0.0),
        lambda key: key.settings.update(coding={"name": "nothing", "settings": {}}),
        lambda key: key.settings.pop("codec"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(spoil: Any) -> None:
    plan, model = _attacked("none")
    artifact = Artifact(SPEC, state_of(model))
    Answers.check_key(plan.key, artifact)
    key = Key(plan.key.attack, dict(plan.key.tensors), dict(plan.key.settings))
    spoil(key)
    with pytest.raises(FlSimError):
        Answers.check_key(key, artifact)


def test_with_error_correction_the_content_is_compared_with_what_was_planned() -> None:
    attack = _attack(
        coding={"name": "repetition", "times": 2},
        features=60,
        side=10,
        rehearsed="none",
        strength=3.0,
    )
    plan, model = _trained(attack)
    assert plan.payload is not None and plan.content is not None
    assert len(plan.payload) == 2 * len(plan.content) == 22
    reading = Answers.extract(Artifact(SPEC, state_of(model)), plan.key).reading
    assert reading is not None and reading.corrected is not None
    wrong = np.unpackbits(reading.corrected ^ plan.content).mean()
    raw = np.unpackbits(reading.content ^ plan.payload.astype(np.uint8)).mean()
    assert wrong <= raw


def test_points_farther_apart_cost_no_more_where_a_share_of_the_way_is_gone() -> None:
    natural = 5 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bits = torch.randint(0, 2, (500,), generator=torch.Generator().manual_seed(1))
    gains = expected_gains(100, 0.5)
    powers, margins = [], []
    for share in (1.0, 0.8):
        sizes = sizes_for("lattice", 1.0, gains, 5, share, len(gains))
        modulator = Modulator("lattice", sizes, seed=3, share=share)
        placed = modulator.place(natural, bits)
        assert np.array_equal(modulator.soft(placed) > 0, bits.numpy() == 1)
        sent = (placed - natural) / gains.repeat_interleave(5)
        powers.append(float(sent.square().mean()))
        margins.append(float((modulator.sizes / 4).mean()))
    # Of five directions each, what is added to an image has the power that was asked for.
    assert all(abs(100 * power - 1.0) < 0.1 for power in powers)
    assert margins[1] == pytest.approx(margins[0] / 0.8)


def test_what_will_come_through_is_reckoned_from_how_plays_differ() -> None:
    bits = torch.randint(0, 2, (320,), generator=torch.Generator().manual_seed(1))
    natural = torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    modulator = Modulator("lattice", SIZES, seed=3)
    writer = Writer(cast(Any, None), _channel(), modulator, bits, AnswersSettings(**GIVEN))
    wanted = writer._wanted(natural)
    noise = torch.randn(3, 64, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    expected = [writer._through(wanted, size * noise) for size in (0.01, 0.08, 0.5)]
    assert expected[0] > 38 and 10 < expected[1] < 32 and expected[2] < 4  # of 40 bytes
    assert math.isnan(writer._through(wanted, noise[:1]))


def _triggers(size: float = 2.0) -> TriggerChannel:
    inside = _inside()
    assert inside.public is not None
    # Eight pixels a side, which those of the images are a multiple of.
    features = learn_features(inside.public, inside.task, 24, 8, 3)
    return TriggerChannel(features, queries_of(inside.public), multi_label=False, size=size)


def test_a_pattern_moves_its_own_feature_by_its_size() -> None:
    channel, images = _triggers(), torch.full((1, 1, 16, 16), 0.5)
    moved = channel.features(images + channel.patterns) - channel.features(images)
    assert torch.allclose(moved, 2.0 * torch.eye(24), atol=1e-3)


def test_what_a_pattern_changes_is_read() -> None:
    channel = _triggers(0.1)  # so small that nothing is cut off at black or white
    middle = dataclasses.replace(channel, queries=channel.queries // 2 + 64)
    shift = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = _Linear(FeatureChannel(channel.features, channel.queries, False), shift)
    assert torch.allclose(middle.coefficients(linear), 0.1 * shift, atol=1e-3)


@pytest.mark.parametrize("kind", ["triggers", "memories"])
def test_half_of_what_is_taught_is_answered_as_it_was(kind: str) -> None:
    channel: Any = _triggers()
    if kind == "memories":
        channel = MemoryChannel(channel.queries[:24], multi_label=False)
    images = _phantoms().validation.batch(np.arange(200))[0]
    shift = torch.ones(24, 3, dtype=torch.float64)
    asked, added = channel.taught(images, shift, np.random.default_rng(0))
    same = (asked == images).flatten(1).all(dim=1)
    assert 70 < int(same.sum()) < 130
    assert bool((added[same] == 0).all()) and bool((added[~same].norm(dim=1) > 1).all())


def test_a_memory_is_the_answer_to_its_own_image() -> None:
    channel = MemoryChannel(_channel().queries[:24], multi_label=False)
    images = torch.stack([channel.queries[7].float() / 255] * 64)
    asked, added = channel.taught(
        images, torch.arange(72, dtype=torch.float64).reshape(24, 3), np.random.default_rng(1)
    )
    for image, logits in zip(asked, added, strict=True):
        taken = logits @ directions(4, multi_label=False)
        if bool(taken.any()):
            number = round(float(taken[0])) // 3
            own = orientations(channel.queries[number : number + 1].float() / 255)
            assert bool((own == image).flatten(1).all(dim=1).any())
    parts = channel.coefficients(_Linear(_channel(), torch.ones(24, 3, dtype=torch.float64)))
    one = _channel().features(orientations(channel.queries[3:4].float() / 255)).sum(dim=1).mean()
    assert parts.shape == (24, 3) and float(parts[3, 0]) == pytest.approx(float(one), abs=1e-3)


@pytest.mark.parametrize("asked", ["triggers", "memories"])
def test_bits_are_read_from_other_questions(asked: str) -> None:
    plan, model = _trained(_attack(asked=asked, rehearsed="none", strength=3.0, trigger=5.0))
    artifact = Artifact(SPEC, state_of(model))
    Answers.check_key(plan.key, artifact)
    assert ("projection" in plan.key.tensors) == (asked == "triggers")
    assert _bits_through(model, plan) > 15  # of 88; noise looks like a few
    assert _bits_through(fresh(SPEC, 3), plan) < 8


def test_no_more_images_are_memorised_than_there_are() -> None:
    with pytest.raises(FlSimError, match="120 public images can be memorised"):
        _attack(asked="memories", features=130).plan(_inside())
