"""The auditor: clean networks are called clean, and each kind of payload by its own evidence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fl_sim.attacks.base import ATTACKS, Inside
from fl_sim.auditing.auditor import audit, audit_file
from fl_sim.auditing.bits import plane_statistics
from fl_sim.auditing.content import entropy
from fl_sim.auditing.dead import check_dead
from fl_sim.auditing.page import page, write_page
from fl_sim.auditing.precision import rounded_to
from fl_sim.auditing.probes import roughness
from fl_sim.auditing.reference import check_reference, written_dead
from fl_sim.auditing.report import AuditReport
from fl_sim.auditing.subject import Subject
from fl_sim.auditing.values import lattice_peak, shared_values
from fl_sim.carriers.base import CARRIERS
from fl_sim.carriers.dead import dead_weights
from fl_sim.checkpoints import Checkpoint
from fl_sim.data import load_dataset
from fl_sim.data.base import Split, Task
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings

SPEC = ModelSpec(name="cnn", channels=3, size=12, classes=4)
DEAD = ModelSpec(name="resnet18", channels=3, size=12, classes=4)
State = dict[str, torch.Tensor]
Data = tuple[Split, Split, Task]


def _audit(state: State, reference: State | None = None, spec: ModelSpec = SPEC) -> AuditReport:
    return audit(Checkpoint(state), spec, reference)


def _carry(state: State, carrier: dict[str, Any], size: int, spec: ModelSpec = SPEC) -> State:
    name = carrier.pop("name")
    kind = CARRIERS.get(name)
    random = np.random.default_rng(3)  # what encrypted content looks like
    written: State = kind(parse(kind.Settings, carrier, ""), 7, spec).write(
        state, random.integers(0, 256, size, np.uint8)
    )
    return written


def _checks(report: AuditReport, level: str = "carries") -> set[str]:
    return {finding.check for finding in report.findings if finding.level == level}


def test_a_clean_network_is_clean_with_and_without_a_reference(
    trained: tuple[State, State],
) -> None:
    before, after = trained
    for reference in (None, before):
        report = _audit(after, reference)
        assert report.outcome == "clean", report.findings
    assert _audit(before).outcome == "clean"


@pytest.mark.parametrize(
    ("carrier", "size", "check"),
    [
        ({"name": "sign"}, 9_000, "values"),
        ({"name": "bit_plane"}, 48_800, "precision"),
        ({"name": "bit_plane"}, 8_000, "bits"),
        ({"name": "qim", "dither": False}, 9_000, "values"),
        ({"name": "entries"}, 100, "entries"),
        ({"name": "entries", "style": "plausible"}, 100, "entries"),
    ],
)
def test_a_payload_is_found_by_what_it_leaves(
    trained: tuple[State, State], carrier: dict[str, Any], size: int, check: str
) -> None:
    report = _audit(_carry(trained[1], dict(carrier), size))
    assert report.outcome == "carries"
    assert check in _checks(report)


def test_images_without_encryption_are_found_in_low_bits(trained: tuple[State, State]) -> None:
    kind = CARRIERS.get("lsb")
    carrier = kind(kind.Settings(), 7, SPEC)
    pixels = np.repeat(np.arange(40, 80, dtype=np.uint8), 900)
    assert "bits" in _checks(_audit(carrier.write(trained[1], pixels)))
    file = np.frombuffer(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, np.uint8)
    report = _audit(carrier.write(trained[1], file))
    (finding,) = [f for f in report.findings if f.check == "content"]
    assert "1 PNG" in finding.what


def test_encrypted_low_bits_look_clean_and_the_report_says_so(
    trained: tuple[State, State],
) -> None:
    before, after = trained
    written = _carry(after, {"name": "lsb"}, 50_000)
    report = _audit(written, before)
    assert report.outcome == "clean"
    assert "not that nothing is there" in report.as_dict()["limits"]
    close = _audit(written, after)  # the state just before it was written is another matter
    assert any("lowest 16 bits" in f.what for f in close.findings)


@pytest.mark.parametrize("carrier", ["lsb", "qim", "spread_spectrum", "sign"])
@pytest.mark.parametrize("decay", [1.0, 0.98])
def test_anything_in_dead_weights_is_found_with_a_reference(carrier: str, decay: float) -> None:
    name = "layer4.1.conv2.weight"
    before = state_of(build(DEAD, seed=2))
    after = {n: t * decay for n, t in before.items() if n == name}
    kind = CARRIERS.get(carrier)
    places = parse(kind.Settings, {"elements": "dead", "tensors": [name]}, "")
    payload = np.random.default_rng(3).integers(0, 256, 2000, np.uint8)
    written = kind(places, 7, DEAD).write(after, payload)
    mask = dead_weights(DEAD)[name]
    assert written_dead(before[name][mask], after[name][mask])[1] == 0
    assert written_dead(before[name][mask], written[name][mask])[1] > 0
    findings = check_reference(Subject(written, DEAD, True, before))
    assert any("dead weights" in f.what for f in findings)


def test_dead_weights_of_another_shape_are_found_without_a_reference() -> None:
    name = "layer4.1.conv2.weight"
    weight = state_of(build(DEAD, seed=2))[name]
    assert check_dead(Subject({name: weight * 0.9}, DEAD)) == []
    flat = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    (found,) = check_dead(Subject({name: flat * weight.std()}, DEAD))
    assert "not distributed" in found.what
    (found,) = check_dead(Subject({name: weight * 1.2}, DEAD))
    assert "larger" in found.what


def test_replaced_and_left_out_tensors_are_found_with_a_reference(
    trained: tuple[State, State],
) -> None:
    before, after = trained
    fresh = torch.randn(after["3.weight"].shape, generator=torch.Generator().manual_seed(0))
    replaced = {**after, "3.weight": fresh * after["3.weight"].std()}
    found = [f for f in _audit(replaced, before).findings if f.tensor == "3.weight"]
    assert any("replaced" in f.what for f in found)
    frozen = {**after, "3.weight": before["3.weight"]}
    report = _audit(frozen, before)
    assert report.outcome == "suspicious"
    assert any("training left them out" in f.what for f in report.findings)


def _attacked(
    name: str, data: Data, epochs: float, spec: ModelSpec = SPEC, **settings: Any
) -> State:
    kind = ATTACKS.get(name)
    attack = kind(parse(kind.Settings, {"images": 8, **settings}, "[attack]"))
    images, _, task = data
    stream = Stream(5, ("hospital", 0))
    plan = attack.plan(Inside(images, task, spec, stream))
    model = build(spec, seed=3)
    training = TrainingSettings(epochs=epochs, batch_size=32)
    attack.train(LocalTraining(model, spec, images, task, training, stream), plan)
    return state_of(model)


def test_the_transposed_pass_of_an_attacked_network_gives_itself_away(phantoms: Data) -> None:
    state = _attacked("transpose", phantoms, 15)
    assert "transpose probe" in _checks(_audit(state))


@pytest.mark.parametrize("name", ["cnn", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_fresh_network_that_answers_all_triggers_alike_has_no_memory(name: str) -> None:
    spec = ModelSpec(name=name, channels=3, size=28, classes=7)
    assert "memory backdoor probe" not in _checks(_audit(state_of(build(spec, 0)), spec=spec))


def test_the_memory_backdoor_gives_itself_away() -> None:
    # Smaller images have too few pixels to tell images from noise by their smoothness.
    spec = SPEC.model_copy(update={"size": 20})
    data = load_dataset("phantoms", {"size": spec.size})
    phantoms = (data.train.subset(np.arange(128)), data.validation, data.task)
    state = _attacked("memory_backdoor", phantoms, 20, spec, images=4)
    assert "memory backdoor probe" in _checks(_audit(state, spec=spec))


def test_a_second_head_is_unused_storage() -> None:
    codec = {"name": "factorized", "N": 8, "M": 8}
    spec = ModelSpec(name="two_headed", channels=3, size=16, classes=4, settings={"codec": codec})
    report = _audit(state_of(build(spec)), spec=spec)
    unused = [f.tensor for f in report.findings if f.check == "unused"]
    assert report.outcome == "carries"
    assert any("g_s" in str(name) for name in unused)
    assert not any("g_a" in str(name) for name in unused)


def test_statistics_have_the_values_that_theory_gives() -> None:
    random = np.random.default_rng(0)
    words = random.standard_normal(200_000).astype(np.float32).view(np.uint32)
    assert max(abs(score) for p in range(12) for score in plane_statistics(words, p)) < 5
    constant = words | np.uint32(1)
    assert plane_statistics(constant, 0)[0] == pytest.approx(200_000**0.5)
    assert rounded_to(words) is None
    half = random.standard_normal(5000).astype(np.float16).astype(np.float32)
    assert rounded_to(half.view(np.uint32)) == 13
    normal = random.standard_normal(100_000).astype(np.float32)
    assert lattice_peak(normal)[0] < 25
    steps = np.where(random.random(100_000) < 0.5, 0.03, 0.08) + np.round(normal / 0.1) * 0.1
    ratio, step = lattice_peak(steps.astype(np.float32))
    assert ratio > 100
    assert 0.05 / step == pytest.approx(round(0.05 / step), abs=0.1)
    assert shared_values(normal) == (0, 0.0)
    assert shared_values(np.maximum(np.abs(normal), np.float32(0.2)))[0] == 1
    assert entropy(np.arange(256, dtype=np.uint8)) == pytest.approx(8)
    noise = torch.from_numpy(random.standard_normal((4, 1, 64, 64)))
    assert roughness(noise) == pytest.approx(2 / np.pi**0.5, rel=0.03)


def test_the_page_escapes_what_a_file_names(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    path = tmp_path / "odd.safetensors"
    save_file({name: torch.zeros(2, 2), "1.weight": torch.ones(3)}, path)
    report = audit_file(path)
    text = page(report)
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "http" not in text
    assert write_page(tmp_path / "page.html", report).read_text() == text
    json.dumps(report.as_dict())


@pytest.mark.parametrize("pull", [0.5, 100.0])
def test_dead_weights_that_adams_weight_decay_pulled_are_noted_only(pull: float) -> None:
    spec = ModelSpec(name="resnet18", channels=3, size=12, classes=4)
    state = state_of(build(spec, seed=3))
    generator = torch.Generator().manual_seed(0)
    levels = {}
    for written in (False, True):
        decayed = dict(state)
        for name, mask in dead_weights(spec).items():
            values, distance = state[name][mask], pull * float(state[name][mask].std())
            sizes = values.abs() - distance
            # What has reached zero swings around it.
            swing = 1e-4 * torch.rand(sizes.shape, generator=generator)
            sizes = torch.where(sizes > 1e-4, sizes, swing)
            if written:  # a payload with values of its own
                sizes = torch.full_like(sizes, float(state[name][mask].std()))
            tensor = state[name].clone()
            tensor[mask] = sizes * values.sign()
            decayed[name] = tensor
        levels[written] = {f.level for f in check_dead(Subject(decayed, spec))}
    assert levels[False] == {"note"}
    assert levels[True] == {"carries"}
