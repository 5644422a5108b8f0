"""Uploads that are summed while they come, or kept on disk: the same result, and little memory."""

import gc
import itertools
import logging
import os
import tempfile
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

import strategies.arrival
import strategies.defended
from clients.app import client_app
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.records import from_record, to_record
from fl_sim.engine.spill import Late
from fl_sim.errors import FlSimError
from strategies.base import STRATEGIES, build_aggregator
from strategies.defended import DefendedStrategy
from tests.engine.federation_kit import Recorder, buffers, halve, initial, same, settings

SUMMED = (
    *("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi"),
    "normclipping",
)
KEYS = {"normclipping": {"max_norm": 2.0}}
HOSPITALS = 5
DEALT = (3, 50, 7, 11, 2)


def sender(broken=(), wide=0, note=lambda: None):
    """Hospitals that send the broadcast with noise of their own, by round; some send NaN."""
    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))

    @app.train()
    def train(message, context):
        note()
        hospital = context.node_config["partition-id"]
        server_round = message.content["config"]["server-round"]
        generator = torch.Generator().manual_seed(100 * server_round + hospital)
        state = from_record(next(iter(message.content.array_records.values())))
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = value + torch.rand(value.shape, generator=generator)
            else:
                state[name] = value + hospital
        if hospital in broken:
            state["4.bias"] = state["4.bias"] * float("nan")
        metrics = MetricRecord({"num-examples": DEALT[hospital % HOSPITALS], f"x{hospital}": 1.0})
        content = RecordDict({"arrays": to_record(state), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


class Shuffled(InProcessGrid):
    """Training replies come in a given order of hospitals."""

    order = tuple(range(HOSPITALS))

    def each_reply(self, messages, *, timeout=None):
        replies = list(super().each_reply(messages, timeout=timeout))
        yield from (replies[place] for place in self.order)


def run(name, *, summed=True, grid=InProcessGrid, app=None, hospitals=HOSPITALS, **changes):
    """Three rounds; what was recorded and the last release."""
    recorder = Recorder()
    aggregator = changes.pop("aggregator", None) or build_aggregator(name, KEYS.get(name))
    if not summed:  # Flower's own way: it gets all replies
        aggregator = replace(aggregator, summed=False)
    built = DefendedStrategy(
        aggregator,
        hospitals=hospitals,
        hospital_settings_json=settings(hospitals=hospitals).model_dump_json(),
        observer=recorder,
        buffers=buffers(),
        **{"dealt": [DEALT[h % HOSPITALS] for h in range(hospitals)], **changes},
    )
    recorder.strategy = built
    connected = grid(app or sender(), hospitals)
    result = built.start(connected, to_record(initial()), 3)
    return recorder, from_record(result.arrays)


def equal(one, other):
    """Whether two recordings are the same bit for bit, in all rounds and what the server keeps."""
    return all(
        same(getattr(one, stage)[r], getattr(other, stage)[r])
        for stage in ("aggregates", "releases")
        for r in (1, 2, 3)
    ) and all(
        np.array_equal(one.server[r][key], other.server[r][key])
        for r in (1, 2, 3)
        for key in one.server[r] | other.server[r]
    )


# ------------------------------------------------------------------------------ the same result


def test_the_summed_strategies_are_those_that_say_so():
    said = {name for name in STRATEGIES.names() if build_aggregator(name).summed}
    assert said == set(SUMMED) - {"normclipping"}  # whose bound may be a median of all
    assert build_aggregator("normclipping", {"max_norm": 1.0}).summed


@pytest.mark.parametrize("name", SUMMED)
@pytest.mark.parametrize("broken", [(), (1,), (0, 4), (0, 1, 2, 4)])
def test_a_running_sum_is_what_flower_makes_of_all_uploads(name, broken):
    """Also where an upload in the middle is rejected, or only one is left."""
    app = sender(broken)
    summed, _ = run(name, app=app)
    plain, _ = run(name, app=app, summed=False)
    assert len(plain.failures) == 3 * len(broken)
    assert summed.failures == plain.failures
    assert equal(summed, plain)


@pytest.mark.parametrize("name", SUMMED)
def test_so_it_is_where_nobody_knows_what_hospitals_were_dealt(name):
    summed, _ = run(name, dealt=None, app=sender((2,)))
    plain, _ = run(name, dealt=None, app=sender((2,)), summed=False)
    assert equal(summed, plain)


@pytest.mark.parametrize("name", SUMMED)
def test_a_round_too_large_to_keep_is_the_same_while_nobody_fails(name, monkeypatch):
    plain, _ = run(name, summed=False)
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", 0)
    large, _ = run(name)
    assert equal(large, plain)


@pytest.mark.parametrize("name", SUMMED)
def test_and_differs_in_the_last_digits_where_an_upload_is_rejected(name, monkeypatch):
    app = sender((1, 3))
    plain, _ = run(name, app=app, summed=False)
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", 0)
    large, _ = run(name, app=app)
    for entry, value in plain.aggregates[1].items():
        torch.testing.assert_close(large.aggregates[1][entry], value, rtol=1e-5, atol=1e-5)


def test_metrics_are_averaged_over_all_hospitals():
    def claims(summed):
        app = ClientApp()
        app.query()(lambda m, c: client_app(m, c))

        @app.train()
        def train(message, context):
            hospital = context.node_config["partition-id"]
            metrics = MetricRecord({"num-examples": DEALT[hospital], "loss": hospital + 0.5})
            return Message(RecordDict({"a": to_record(initial()), "m": metrics}), reply_to=message)

        aggregator = replace(build_aggregator("fedadam"), summed=summed)
        built = DefendedStrategy(
            aggregator,
            hospitals=HOSPITALS,
            hospital_settings_json=settings().model_dump_json(),
            buffers=buffers(),
            dealt=DEALT,
        )
        result = built.start(InProcessGrid(app, HOSPITALS), to_record(initial()), 1)
        return dict(result.train_metrics_clientapp[1])

    assert claims(True) == claims(False)
    assert claims(True) == {"loss": pytest.approx(np.average(np.arange(5) + 0.5, weights=DEALT))}


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "normclipping", "fedmedian", "multikrum"])
@pytest.mark.parametrize("ahead", [0, 5000, 1 << 30])
def test_no_order_of_arrival_changes_a_bit(name, ahead, monkeypatch):
    expected, _ = run(name, app=sender((2,)))
    monkeypatch.setattr("strategies.arrival.AHEAD_BYTES", ahead)
    monkeypatch.setattr(strategies.arrival.in_order, "__defaults__", (ahead,))
    orders = list(itertools.permutations(range(HOSPITALS)))
    chosen = [orders[place] for place in (1, 17, 58, 96, 119)]
    for order in chosen:
        grid = type("Grid", (Shuffled,), {"order": order})
        recorder, _ = run(name, app=sender((2,)), grid=grid)
        assert list(recorder.uploads) == list(expected.uploads)  # told in the hospitals' order
        assert equal(recorder, expected)


def test_every_order_of_four_gives_the_same_mean():
    expected, _ = run("fedavg", hospitals=4)
    for order in itertools.permutations(range(4)):
        grid = type("Grid", (Shuffled,), {"order": order})
        assert equal(run("fedavg", hospitals=4, grid=grid)[0], expected)


def test_a_missing_reply_holds_nothing_up_for_good():
    grid = type("Grid", (Shuffled,), {"order": (4, 3, 2, 1)})
    recorder, _ = run("fedavg", grid=grid)
    assert set(recorder.failures) == {(r, 0) for r in (1, 2, 3)}
    assert [h for r, h in recorder.uploads if r == 1] == [1, 2, 3, 4]


class Replaced(FedAvg):
    """A stranger's strategy that counts replies and changes them before Flower averages."""

    seen: list = []  # noqa: RUF012

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.seen.append(len(replies))
        for reply in replies:
            (record,) = reply.content.array_records.values()
            record["4.bias"] = Array(record["4.bias"].numpy() + 1)
        return super().aggregate_train(server_round, replies)


def test_a_strangers_strategy_gets_all_replies(monkeypatch):
    monkeypatch.setattr(strategies.defended, "MEMORY_BYTES", 0)
    Replaced.seen.clear()
    recorder, _ = run("stranger", aggregator=Replaced())
    assert Replaced.seen == [HOSPITALS] * 3
    plain, _ = run("fedavg")
    moved = recorder.aggregates[1]["4.bias"] - plain.aggregates[1]["4.bias"]
    assert torch.allclose(moved, torch.ones(2))
    assert torch.equal(recorder.aggregates[1]["4.weight"], plain.aggregates[1]["4.weight"])


# --------------------------------------------------------------------------------- little memory


def copies():
    """How many copies of the largest entry are in memory, serialised or not."""
    gc.collect()
    shape = tuple(initial()["4.weight"].shape)
    found = gc.get_objects()
    arrays = [a for a in found if type(a) is Array and tuple(a.shape) == shape]
    tensors = [t for t in found if type(t) is torch.Tensor and tuple(t.shape) == shape]
    # A shallow copy of a record shares its bytes.
    return len({id(array.data) for array in arrays}) + len(tensors)


class Forgetful(Recorder):
    def upload(self, server_round, hospital, state, metrics):
        pass


@pytest.mark.parametrize(
    ("name", "insured"), [("fedavg", 0), ("fedavg", 1 << 40), ("fedadam", 0), ("fedmedian", 0)]
)
def test_a_round_holds_no_more_uploads_however_many_hospitals_send(name, insured, monkeypatch):
    monkeypatch.setattr(strategies.defended, "MEMORY_BYTES", 0)
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", insured)
    monkeypatch.setattr("tests.strategies.test_gathering.Recorder", Forgetful)

    def growth(hospitals):
        """Copies when the last hospital of the first round is at work, beside the first one."""
        worked, held = itertools.count(), []
        looks = (0, hospitals - 1)
        app = sender(note=lambda: held.append(copies()) if next(worked) in looks else None)
        run(name, app=app, hospitals=hospitals)
        return held[1] - held[0]

    assert growth(6) <= 4
    assert growth(30) == growth(6)


def test_what_waits_for_a_slow_hospital_waits_on_disk(monkeypatch):
    monkeypatch.setattr(strategies.arrival.in_order, "__defaults__", (0,))
    monkeypatch.setattr("tests.strategies.test_gathering.Recorder", Forgetful)
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", 0)
    held, looks = [], (1003, 1020)

    class Slow(InProcessGrid):
        """The first hospital's reply comes last."""

        def each_reply(self, messages, *, timeout=None):
            messages = list(messages)
            for reply in super().each_reply(messages[1:], timeout=timeout):
                yield reply
                if reply.metadata.src_node_id in looks:
                    held.append(copies())
            yield from super().each_reply(messages[:1], timeout=timeout)

    run("fedavg", grid=Slow, hospitals=20)
    assert held[1] - held[0] <= 1


# ------------------------------------------------------------------------------------- the disk


def open_in(folder):
    """Files of a folder that this process has open, and those that have a name there."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))], os.listdir(folder)


@pytest.fixture
def spilled(tmp_path, monkeypatch):
    """All uploads go to disk, in a folder of this test's own."""
    monkeypatch.setattr(strategies.defended, "MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def raising(error):
    def release(state, server_round, reference, uploads):
        raise error

    return release


class Interrupted(InProcessGrid):
    def each_reply(self, messages, *, timeout=None):
        replies = super().each_reply(messages, timeout=timeout)
        yield next(replies)
        yield next(replies)
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "krum", "bulyan"])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"release": raising(ValueError("no"))}, FlSimError),
        ({"grid": Interrupted}, KeyboardInterrupt),
        ({"app": sender(range(HOSPITALS))}, FlSimError),
    ],
)
def test_nothing_is_left_on_disk_whatever_happens(name, changes, error, spilled, monkeypatch):
    monkeypatch.setattr("strategies.selecting.MATRIX_BYTES", 0)
    seen = []

    class Watching(Recorder):
        def upload(self, server_round, hospital, state, metrics):
            seen.append(open_in(spilled))

    monkeypatch.setattr("tests.strategies.test_gathering.Recorder", Watching)
    if error is None:
        run(name, **changes)
    else:
        with pytest.raises(error):
            run(name, **changes)
    assert open_in(spilled) == ([], [])
    if "app" not in changes:
        assert any(opened for opened, _ in seen) and not any(named for _, named in seen)


def test_a_defence_gets_uploads_back_from_disk(spilled):
    read = []

    def release(state, server_round, reference, uploads):
        read.append([dict(upload) for upload in uploads])
        return state, None

    recorder, _ = run("fedavg", release=release)
    for server_round, states in enumerate(read, start=1):
        assert len(states) == HOSPITALS
        for hospital, state in enumerate(states):
            assert same(state, recorder.uploads[server_round, hospital])


def test_a_defence_that_hides_its_need_is_told(monkeypatch):
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", 0)

    def release(state, server_round, reference, uploads):
        return uploads[0], None

    with pytest.raises(FlSimError, match="says so in `needs_uploads`"):
        run("fedavg", release=release, reads_uploads=False)
    run("fedavg", release=release)
    run("fedavg", release=halve, reads_uploads=False)


def test_a_disk_that_is_too_small_is_told_of_before_the_round(spilled, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2000.0))
    asked = []
    with pytest.raises(FlSimError, match=r"Round 1: the uploads of 5 hospitals take up to 0\.0 GB"):
        run("fedmedian", app=sender(note=lambda: asked.append(1)))
    assert not asked
    monkeypatch.setattr(strategies.defended, "INSURED_BYTES", 0)
    run("fedavg")  # which keeps nothing


def test_a_large_round_says_how_much_disk_it_takes(spilled, monkeypatch, caplog):
    monkeypatch.setattr(strategies.defended, "_LARGE_BYTES", 1000)
    with caplog.at_level(logging.WARNING):
        run("fedmedian")
    said = [record.getMessage() for record in caplog.records if "on disk" in record.getMessage()]
    assert said == [f"Round 1: the uploads of 5 hospitals take up to 0.0 GB on disk, in {spilled}."]


def test_a_full_disk_is_one_sentence(spilled, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FlSimError, match="No space left on device; set TMPDIR to a folder"):
        run("fedmedian")


def test_an_upload_on_disk_is_read_only_when_it_is_asked_for(spilled):
    kinds: list[type] = []

    class Looking(FedAvg):
        def aggregate_train(self, server_round, replies):
            for reply in replies:
                (record,) = reply.content.array_records.values()
                kinds.extend(type(array) for array in record.values())
            return super().aggregate_train(server_round, replies)

    run("looking", aggregator=Looking())
    assert set(kinds) == {Late}
