"""What passes a hospital's door, and what does not."""

from typing import Any

import pytest
import torch

from clients.door import digest, hospital_door, pass_door
from clients.hospital import LocalResult, local_round, update_norm
from clients.settings import DoorSettings
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse
from strategies.observers import Unobserved
from tests.engine.federation_kit import federate, initial, settings

OPEN = DoorSettings(audit=False)


def _trained() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    broadcast = initial()
    generator = torch.Generator().manual_seed(1)
    upload = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "var" not in name
        else value.clone()
        for name, value in broadcast.items()
    }
    return upload, broadcast


def test_an_upload_as_asked_for_passes_bit_for_bit() -> None:
    upload, broadcast = _trained()
    passage = pass_door(upload, broadcast, OPEN)
    assert passage.state is not None and passage.record.action == "passed"
    assert digest(passage.state) == digest(upload) == passage.record.sha256_after
    assert passage.record.norm_before == pytest.approx(update_norm(upload, broadcast))


def test_what_nobody_asked_for_stays() -> None:
    upload, broadcast = _trained()
    upload["thumbnails"] = torch.zeros(100, dtype=torch.uint8)
    passage = pass_door(upload, broadcast, OPEN)
    assert passage.state is not None and list(passage.state) == list(broadcast)
    assert passage.record.dropped == ("thumbnails",) and passage.record.action == "changed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.double(), "is torch.float64, not torch.float32"),
        (lambda value: value[:1], "has shape"),
        (lambda value: value * float("nan"), "NaN or infinite"),
        (lambda value: None, "is missing"),
    ],
)
def test_what_is_not_as_asked_for_is_withheld(change: Any, said: str) -> None:
    upload, broadcast = _trained()
    changed = change(upload.pop("0.weight"))
    if changed is not None:
        upload["0.weight"] = changed
    passage = pass_door(upload, broadcast, OPEN)
    assert passage.state is None and passage.record.action == "withheld"
    assert said in passage.record.reason and passage.record.sha256_after == ""


def test_an_update_is_clipped_to_its_norm() -> None:
    upload, broadcast = _trained()
    passage = pass_door(upload, broadcast, DoorSettings(audit=False, clip=0.25))
    assert passage.state is not None and passage.record.action == "changed"
    assert update_norm(passage.state, broadcast) == pytest.approx(0.25, rel=1e-5)
    assert passage.record.norm_after == pytest.approx(0.25, rel=1e-5)


def test_bytes_of_pictures_in_weights_are_withheld() -> None:
    torch.manual_seed(3)
    spec = ModelSpec(name="cnn", channels=1, size=28, classes=2)
    broadcast = state_of(build(spec))
    upload = {
        n: v + 0.01 * torch.randn(v.shape)
        if v.is_floating_point() and "var" not in n
        else v.clone()
        for n, v in broadcast.items()
    }
    passed = pass_door(upload, broadcast, DoorSettings(), spec)
    assert passed.state is not None and passed.record.audit == "clean"
    largest = max(broadcast, key=lambda name: broadcast[name].numel())
    upload[largest] = torch.randint(0, 256, broadcast[largest].shape).float()
    passage = pass_door(upload, broadcast, DoorSettings(), spec)
    assert passage.state is None and passage.record.reason.startswith("the audit says")
    assert passage.record.audit == "carries" and passage.record.findings
    seen = pass_door(upload, broadcast, DoorSettings(audit=False), spec)
    assert seen.state is not None, "without an audit it would have left"


def test_a_hospitals_door_cleans_on_its_own_images_and_the_same_each_time() -> None:
    told = settings(door=DoorSettings(audit=False, clean={"name": "gaussian_noise"}))
    result = local_round(told, 1, 1, initial())
    once = hospital_door(told, 1, 1, result, initial())
    again = hospital_door(told, 1, 1, result, initial())
    other = hospital_door(told, 2, 1, result, initial())
    assert once.state is not None and again.state is not None and other.state is not None
    assert digest(once.state) == digest(again.state)
    assert len({digest(result.state), digest(once.state), digest(other.state)}) == 3


@pytest.mark.parametrize(
    ("clean", "said"),
    [
        ("lwlrt", "Did you mean 'lwlrd'"),
        ("rhe", "seals"),
        ("ensemble_distillation", "a door sees one"),
    ],
)
def test_a_defence_that_no_door_can_apply_is_refused(clean: str, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        parse(DoorSettings, {"clean": clean}, "[federation] door")


class _Doors(Unobserved):
    """Remembers what was uploaded, and what left."""

    strategy: Any = None

    def __init__(self) -> None:
        self.uploads: dict[Any, Any] = {}
        self.left: dict[Any, Any] = {}
        self.failures: dict[Any, str] = {}

    def upload(self, server_round: int, hospital: int, state: Any, metrics: Any) -> None:
        self.uploads[server_round, hospital] = state

    def door(self, server_round: int, hospital: int, state: Any, values: Any) -> None:
        self.left[server_round, hospital] = (state, values)

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        self.failures[server_round, hospital] = reason


def _federated(door: DoorSettings, monkeypatch: pytest.MonkeyPatch) -> _Doors:
    doors = _Doors()
    monkeypatch.setattr("tests.engine.federation_kit.Recorder", lambda: doors)
    federate(settings(attack="fake-attack", rounds=1, door=door), doors=True)
    return doors


def test_a_federation_sees_uploads_before_and_after_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doors = _federated(DoorSettings(audit=False, clip=1e-3), monkeypatch)
    assert sorted(doors.left) == [(1, hospital) for hospital in range(4)]
    attacked, (left, values) = doors.uploads[1, 0], doors.left[1, 0]
    assert update_norm(attacked, initial()) > 0.01
    assert update_norm(left, initial()) == pytest.approx(1e-3, rel=1e-3) and not values["withheld"]


def test_a_withheld_upload_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    door = hospital_door

    def stern(told: Any, hospital: int, *further: Any) -> Any:
        passage = door(told, hospital, *further)
        if hospital:
            return passage
        record = type(passage.record)("withheld", reason="it was caught")
        return type(passage)(None, record)

    monkeypatch.setattr("clients.app.hospital_door", stern)
    doors = _federated(OPEN, monkeypatch)
    assert doors.left[1, 0][0] is None and doors.left[1, 0][1]["withheld"] == 1.0
    assert (1, 0) in doors.uploads, "what would have left is measured"
    assert doors.failures == {(1, 0): "its door withheld the upload: it was caught"}


def test_without_a_door_nothing_changes() -> None:
    told = settings()
    assert told.door is None and isinstance(local_round(told, 1, 1, initial()), LocalResult)
