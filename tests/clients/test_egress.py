"""The mod that puts a door on any Flower app: what it lets out, notes and withholds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from clients.egress import behind_door, egress_check
from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


BROADCAST = {name: value.clone() for name, value in _network().state_dict().items()}
UPLOAD = {
    name: value + 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    for name, value in BROADCAST.items()
}
METRICS = {"num-examples": 12, "train_loss": 0.123456789}
CONTEXT = Context(1, 7, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})


def _ask(kind: str = "train", state: dict[str, torch.Tensor] | None = None) -> Message:
    arrays = to_record(BROADCAST if state is None else state)
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 3})})
    return Message(content, dst_node_id=7, message_type=kind)


def _answered(mod: Any, content: dict[str, Any], message: Message | None = None) -> Message:
    def app(message: Message, context: Context) -> Message:
        return Message(RecordDict(content), reply_to=message)

    answer: Message = mod(message or _ask(), CONTEXT, app)
    return answer


def _usual(**further: Any) -> dict[str, Any]:
    return {"arrays": to_record(UPLOAD), "metrics": MetricRecord(dict(METRICS)), **further}


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made here, as a task of Flower's may."""
    for name, number in {"_run_id": 1, "_task_id": 1, "_node_id": 1}.items():
        monkeypatch.setattr(TaskIdentity, name, number)


OPEN = {"audit": False}


def test_an_honest_upload_leaves_with_rounded_numbers_and_a_line(tmp_path: Path) -> None:
    log = tmp_path / "door.jsonl"
    reply = _answered(egress_check(OPEN, log=log), _usual())
    assert not reply.has_error()
    left = from_record(reply.content.array_records["arrays"])
    assert all(torch.equal(left[name], UPLOAD[name]) for name in UPLOAD)
    (metrics,) = reply.content.metric_records.values()
    assert dict(metrics) == {"num-examples": 12, "train_loss": 0.123457}
    line = json.loads(log.read_text())
    assert (line["action"], line["round"], line["node"]) == ("passed", 3, 7)
    assert set(line) >= {"sha256_before", "sha256_after", "norm_before", "seconds"}


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ({"more": to_record({"x": torch.zeros(3)})}, "holds 2 ArrayRecords"),
        ({"notes": ConfigRecord({"image": b"pixels"})}, "holds 1 ConfigRecords"),
        ({"metrics": MetricRecord({"pixel-17": 0.5})}, "the number 'pixel-17'; name it"),
        ({"metrics": MetricRecord({"loss": [0.5] * 40})}, "holds 40 numbers"),
        ({"arrays": to_record({**UPLOAD, "0.bias": UPLOAD["0.bias"][:2]})}, "has shape"),
    ],
)
def test_what_nobody_asked_for_withholds_the_reply(
    further: dict[str, Any], said: str, tmp_path: Path
) -> None:
    log = tmp_path / "door.jsonl"
    reply = _answered(egress_check(OPEN, log=log), _usual(**further))
    assert reply.has_error() and said in reply.error.reason
    assert said in json.loads(log.read_text())["reason"]


def test_evaluation_lets_no_arrays_out() -> None:
    mod = egress_check(OPEN)
    assert _answered(mod, _usual(), _ask("evaluate")).has_error()
    numbers = {"metrics": MetricRecord({"eval_loss": 1.0, "num-examples": 3})}
    assert not _answered(mod, numbers, _ask("evaluate")).has_error()


def test_further_entries_stay_and_an_update_is_clipped() -> None:
    mod = egress_check({"audit": False, "clip": 0.1})
    reply = _answered(mod, _usual(arrays=to_record({**UPLOAD, "loot": torch.ones(9)})))
    left = from_record(reply.content.array_records["arrays"])
    assert list(left) == list(BROADCAST)
    moved = sum(float((left[n] - BROADCAST[n]).square().sum()) for n in left)
    assert moved**0.5 == pytest.approx(0.1, rel=1e-4)


def test_numbered_arrays_are_cleaned_under_the_networks_names() -> None:
    numbered = {str(n): value for n, value in enumerate(BROADCAST.values())}
    upload = {str(n): value for n, value in enumerate(UPLOAD.values())}
    generator = torch.Generator().manual_seed(4)
    images = (
        torch.rand(24, 1, 8, 8, generator=generator),
        torch.randint(0, 2, (24,), generator=generator),
    )
    mod = egress_check(
        {"audit": False, "clean": {"name": "fine_tuning", "epochs": 1}},
        model=_network,
        images=lambda context: images,
    )
    reply = _answered(mod, _usual(arrays=to_record(upload)), _ask(state=numbered))
    assert not reply.has_error(), reply.error.reason if reply.has_error() else ""
    left = from_record(reply.content.array_records["arrays"])
    assert list(left) == list(numbered) and not torch.equal(left["0"], upload["0"])


def test_what_cannot_be_checked_does_not_leave() -> None:
    def broken(context: Context) -> Any:
        raise RuntimeError("the archive is offline")

    mod = egress_check({"audit": False, "clean": "fine_tuning"}, model=_network(), images=broken)
    reply = _answered(mod, _usual())
    assert reply.has_error() and "the archive is offline" in reply.error.reason


def test_cleaning_takes_a_network_and_images() -> None:
    with pytest.raises(FlSimError, match="give model= and images="):
        egress_check({"clean": "fine_tuning"})
    with pytest.raises(FlSimError, match="clip"):
        egress_check({"clipp": 3.0})


def test_an_app_behind_a_door_cannot_leave_it_out() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = _usual(notes=ConfigRecord({"image": b"pixels"}))
        return Message(RecordDict(content), reply_to=message)

    assert behind_door(app, egress_check(OPEN))(_ask(), CONTEXT).has_error()


def test_an_audit_withholds_pictures_in_weights() -> None:
    torch.manual_seed(3)
    network = build(ModelSpec(name="cnn", channels=1, size=28, classes=2))
    sent = state_of(network)
    mod = egress_check(model=network, size=28)
    honest = {
        n: v + 0.01 * torch.randn(v.shape)
        if v.is_floating_point() and "var" not in n
        else v.clone()
        for n, v in sent.items()
    }
    assert not _answered(mod, _usual(arrays=to_record(honest)), _ask(state=sent)).has_error()
    largest = max(sent, key=lambda name: sent[name].numel())
    stolen = {**honest, largest: torch.randint(0, 256, sent[largest].shape).float()}
    reply = _answered(mod, _usual(arrays=to_record(stolen)), _ask(state=sent))
    assert reply.has_error() and "the audit says" in reply.error.reason
