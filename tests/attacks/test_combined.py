"""Several attacks in one model: each finds its own images again."""

import numpy as np
import pytest
import torch

from fl_sim.artifact import Artifact, read_artifact, read_key, write_artifact, write_key
from fl_sim.attacks.base import ATTACKS, Inside
from fl_sim.attacks.combined import Combined, CombinedSettings
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.metrics.payload import measure_payload
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Status
from fl_sim.randomness import Stream
from fl_sim.settings import parse

SPEC = ModelSpec(name="resnet18", channels=1, size=16, classes=3)
TASK = Task("multi-class", ("a", "b", "c"))
PNG = {"name": "dec", "codec": "png"}
PARTS = {
    "live lattices": {
        **PNG,
        "images": 2,
        "carrier": {"name": "qim", "elements": "live"},
        "coding": {"name": "ldpc", "rate": 0.5},
    },
    "dead weights": {**PNG, "images": 3, "carrier": {"name": "sign", "elements": "dead"}},
    "low bits": {**PNG, "images": 4, "carrier": {"name": "lsb", "bits": 8}},
}


def _inside() -> Inside:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 16, 16, 1)).astype(np.uint8)
    return Inside(Split(images, generator.integers(0, 3, 40)), TASK, SPEC, Stream(0))


def _attack(parts) -> Combined:
    return Combined(parse(CombinedSettings, {"parts": parts}, "[attack]"))


def test_every_part_comes_back_from_the_two_files(tmp_path) -> None:
    attack = _attack(PARTS)
    plan = attack.plan(_inside())
    embedding = attack.embed(state_of(build(SPEC, 1)), SPEC, plan)
    assert embedding.values["images_written[low bits]"] == 4
    artifact = read_artifact(write_artifact(tmp_path / "m.safetensors", SPEC, embedding.state))
    key = read_key(write_key(tmp_path / "k.safetensors", plan.key))
    extraction = ATTACKS.get("combined").extract(artifact, key)
    assert torch.equal(extraction.images, plan.targets)
    assert extraction.reading is not None
    assert extraction.reading.parts == (("live lattices", 2), ("dead weights", 3), ("low bits", 4))
    assert np.array_equal(extraction.reading.content, plan.payload)


def test_what_is_lost_is_told_by_part() -> None:
    attack = _attack(PARTS)
    plan = attack.plan(_inside())
    sent = attack.embed(state_of(build(SPEC, 1)), SPEC, plan).state
    noise = torch.Generator().manual_seed(0)
    arrived = {
        name: value + 1e-4 * torch.randn(value.shape, generator=noise)
        if value.is_floating_point()
        else value
        for name, value in sent.items()
    }
    extraction = attack.extract(Artifact(SPEC, arrived), plan.key)
    assert extraction.reading is not None
    undisturbed = attack.extract(Artifact(SPEC, sent), plan.key)
    assert undisturbed.reading is not None
    rows = {
        row.metric: row.value
        for row in measure_payload(
            extraction.reading,
            plan.payload,
            extraction.images,
            undisturbed.images,
            undisturbed.reading.corrected,
        )
    }
    assert rows["images_intact[low bits]"] == 0
    assert rows["images_intact[dead weights]"] == 3
    assert rows["images_intact[live lattices]"] == 2
    assert rows["images_intact"] == 5
    errors = attack.survival(sent, arrived, plan.payload, plan.key)
    low = [error for name, error in errors.items() if name.startswith("low bits: ")]
    assert np.mean(low) > 0.2


def test_parts_with_a_memory_are_damaged_at_most() -> None:
    parts = {"memory": {"name": "transpose", "images": 2}, "bits": PARTS["low bits"]}
    attack = _attack(parts)
    plan = attack.plan(_inside())
    state = attack.embed(state_of(build(SPEC, 1)), SPEC, plan).state
    reading = attack.extract(Artifact(SPEC, state), plan.key).reading
    assert reading is not None
    assert reading.status is not None
    assert list(reading.status) == [Status.DAMAGED] * 2 + [Status.INTACT] * 4


def test_settings_are_checked_part_by_part() -> None:
    with pytest.raises(FlSimError, match="Did you mean 'dec'"):
        _attack({"a": "dek"})
    identity = _attack({"a": PNG}).settings.identity()
    assert identity["parts"]["a"]["settings"]["codec"] == {"name": "png"}
