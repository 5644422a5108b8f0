"""Strategies, defences and observers that nobody here wrote: whatever they do is told by name."""

import errno
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from clients.app import client_app
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError
from strategies.base import Aggregator
from strategies.defended import DefendedStrategy
from tests.engine.federation_kit import (
    Recorder,
    federate,
    initial,
    same,
    settings,
    strategy,
)


class Stranger(FedAvg):
    """Averages, and then does something else."""

    def __init__(self, aggregate=None, configure=None):
        super().__init__()
        self.aggregate, self.configure = aggregate, configure

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return self.configure(messages) if self.configure else messages

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return self.aggregate(arrays, metrics) if self.aggregate else (arrays, metrics)


def run(inner, rounds=1, **changes):
    federation, recorder = settings(rounds=rounds), Recorder()
    built = DefendedStrategy(
        inner if isinstance(inner, Aggregator) else Aggregator(inner, name="stranger"),
        hospitals=4,
        hospital_settings_json=federation.model_dump_json(),
        observer=recorder,
        **changes,
    )
    recorder.strategy = built
    built.start(InProcessGrid(client_app, 4), to_record(initial()), rounds)
    return recorder


def raising(error):
    def call(*arguments):
        raise error

    return call


def changed(change):
    def aggregate(arrays, metrics):
        state = from_record(arrays)
        change(state)
        return to_record(state), metrics

    return aggregate


def set_to(name, value):
    return changed(lambda state: state.__setitem__(name, value))


def broken(arrays, metrics):
    arrays["4.bias"].data = arrays["4.bias"].data[:-1]
    return arrays, metrics


AGGREGATES = {
    "raises": (raising(KeyError("momentum")), "failed: KeyError: 'momentum'"),
    "leaves": (raising(SystemExit(0)), "failed: SystemExit: 0"),
    "interrupts": (raising(KeyboardInterrupt()), "failed: KeyboardInterrupt"),
    "kind of its own": (raising(BaseException("x")), "failed: BaseException: x"),
    "own error": (raising(FlSimError("No quorum.")), "'stranger': No quorum"),
    "nothing": (lambda arrays, metrics: None, "returned nothing, not arrays and metrics"),
    "no arrays": (lambda arrays, metrics: (None, None), "made nothing of 4 uploads"),
    "arrays alone": (lambda arrays, metrics: arrays, "returned a ArrayRecord, not arrays and"),
    "a dictionary": (lambda arrays, metrics: ({}, None), "returned a dict, not an ArrayRecord"),
    "odd metrics": (lambda arrays, metrics: (arrays, {"a": 1}), "returned a dict as metrics"),
    "no entry": (changed(lambda s: s.pop("4.bias")), "lacks '4.bias'"),
    "no entries": (lambda arrays, metrics: (ArrayRecord(), None), "lacks '0.weight', "),
    "further": (set_to("more", torch.ones(1)), "has 'more'"),
    "shape": (set_to("4.bias", torch.ones(2, 1)), r"'4.bias' is torch.float32 of shape \(2, 1\)"),
    "turned": (changed(lambda s: s.update({"4.weight": s["4.weight"].T})), "'4.weight' is"),
    "a number": (set_to("4.bias", torch.tensor(1.0)), r"'4.bias' is torch.float32 of shape \(\)"),
    "complex": (set_to("4.bias", torch.ones(2) * 1j), "'4.bias' is torch.complex64"),
    "texts": (
        lambda arrays, metrics: (ArrayRecord({"4.bias": Array(np.array(["a"]))}), None),
        "cannot be read",
    ),
    "cut": (broken, "cannot be read"),
    "nan": (set_to("4.bias", torch.full((2,), float("nan"))), "'4.bias' has values that are NaN"),
    "infinite in float32": (
        set_to("4.bias", torch.full((2,), 1e300, dtype=torch.float64)),
        "'4.bias' has values that are NaN or infinite",
    ),
    "negative variances": (
        changed(lambda s: s.update({"1.running_var": -s["1.running_var"]})),
        "'1.running_var' has negative variances",
    ),
}


@pytest.mark.parametrize(("aggregate", "sentence"), AGGREGATES.values(), ids=AGGREGATES.keys())
def test_a_bad_aggregate_is_named(aggregate, sentence):
    with pytest.raises(FlSimError, match=sentence) as caught:
        run(Stranger(aggregate))
    said = str(caught.value)
    assert said.startswith("Round 1: ") and "'stranger'" in said and "\n" not in said


def bare(messages):
    for message in messages:
        message.content = RecordDict({"arrays": ArrayRecord()})
    return messages


def elsewhere(messages):
    return [Message(messages[0].content, dst_node_id=7, message_type="train")]


@pytest.mark.parametrize(
    ("configure", "sentence"),
    [
        (raising(RuntimeError("no hospitals today")), "failed: RuntimeError: no hospitals today"),
        (raising(SystemExit()), "failed: SystemExit"),
        (lambda messages: None, "returned nothing, not messages"),
        (lambda messages: 7, "returned a int, not messages"),
        (lambda messages: [], "asks no hospital"),
        (lambda messages: ["message"], "returned a str among the messages"),
        (lambda messages: [*messages, messages[0]], "asks a hospital twice"),
        (elsewhere, "not in the cohort"),
        (bare, "without an ArrayRecord or a ConfigRecord"),
    ],
)
def test_bad_messages_are_named(configure, sentence):
    with pytest.raises(FlSimError, match=f"Round 1: the strategy 'stranger'.*{sentence}"):
        run(Stranger(configure=configure))


def test_the_round_is_named():
    def later(arrays, metrics):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("enough")
        return arrays, metrics

    calls = []
    with pytest.raises(FlSimError, match="Round 3: the strategy 'stranger' failed: ValueError"):
        run(Stranger(later), rounds=4)


def test_a_strategy_may_ask_fewer_and_average_metrics_of_none():
    def none(arrays, metrics):
        noting: Any = built.train_metrics_aggr_fn
        noting._note([], "num-examples")
        return arrays, None

    built = Stranger(none, lambda messages: messages[:2])
    optimizer = Aggregator(built, name="stranger", server_optimizer=True)
    recorder = run(optimizer, buffers=["1.running_mean", "1.running_var"])
    assert len(recorder.uploads) == 2 and not recorder.failures
    means = sum(state["1.running_var"] for state in recorder.uploads.values()) / 2
    assert torch.allclose(recorder.aggregates[1]["1.running_var"], means, rtol=0.05)


# ------------------------------------------------------------------------------------ defences


def releasing(change):
    def release(state, server_round, reference, uploads):
        return change(state)

    return release


def altered(name, value):
    return releasing(lambda state: ({**state, name: value(state[name])}, None))


RELEASES = {
    "raises": (releasing(raising(ZeroDivisionError("by zero"))), "failed: ZeroDivisionError: by z"),
    "leaves": (releasing(raising(SystemExit(1))), "failed: SystemExit: 1"),
    "own error": (releasing(raising(FlSimError("Too few images."))), ": Too few images"),
    "nothing": (releasing(lambda state: None), "returned no state and report"),
    "state alone": (releasing(lambda state: state), "returned no state and report"),
    "a list": (releasing(lambda state: (list(state), None)), "returned no state and report"),
    "loses": (
        releasing(lambda s: ({k: v for k, v in s.items() if k != "4.bias"}, None)),
        "added or removed 4.bias",
    ),
    "adds": (releasing(lambda s: ({**s, "x": torch.ones(1)}, None)), "added or removed x"),
    "nan": (altered("4.bias", lambda t: t * float("inf")), "'4.bias' has values that are NaN"),
    "shape": (altered("4.bias", lambda t: t[:1]), r"'4.bias' has shape \(1,\)"),
    "dtype": (altered("4.bias", lambda t: t.double()), "'4.bias' is torch.float64"),
    "an array": (altered("4.bias", lambda t: t.numpy()), "'4.bias' is a ndarray"),
    "variance": (altered("1.running_var", lambda t: -t), "'1.running_var' has negative"),
    "count": (altered("1.num_batches_tracked", lambda t: t - 99), "counts -.* batches"),
}


@pytest.mark.parametrize(("release", "sentence"), RELEASES.values(), ids=RELEASES.keys())
def test_a_bad_release_is_named_and_never_leaves(release, sentence):
    recorder = Recorder()
    built = strategy(
        recorder, settings(), release=release, defend=2, defense="the defence 'shredder'"
    )
    grid = InProcessGrid(client_app, 4)
    with pytest.raises(FlSimError, match=f"^Round 2: the defence 'shredder'.*{sentence}"):
        built.start(grid, to_record(initial()), 3)
    assert list(recorder.releases) == [1]


def test_a_defence_may_order_entries_as_it_likes():
    turned = releasing(lambda state: (dict(reversed(state.items())), None))
    plain, _ = federate(settings(rounds=1))
    recorder, _ = federate(settings(rounds=1), release=turned)
    assert same(recorder.releases[1], plain.releases[1])


# ----------------------------------------------------------------------------------- observers


@pytest.mark.parametrize("stage", ["upload", "aggregate", "release", "failed"])
@pytest.mark.parametrize("error", [IndexError("no column"), SystemExit(0)])
def test_a_raising_observer_is_named(stage, error, monkeypatch):
    monkeypatch.setattr(Recorder, stage, raising(error))
    word = "upload" if stage == "failed" else stage
    kind = type(error).__name__
    with pytest.raises(FlSimError, match=f"Round 1: the observer of the stage '{word}' .*{kind}"):
        federate(settings(attack="broken-attack"))


def test_a_full_disk_is_not_the_observers_fault(monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Recorder, "release", raising(full))
    with pytest.raises(OSError, match="No space") as caught:
        federate(settings())
    assert caught.value is full


def test_a_strategy_with_an_odd_state_is_named():
    class Odd(FedAvg):
        def __getattribute__(self, name):
            if name == "__dict__":
                raise RuntimeError("hidden")
            return super().__getattribute__(name)

    built = strategy(Recorder(), settings())
    built._inner._strategy = Odd()
    with pytest.raises(FlSimError, match="The state of the strategy 'fedavg' failed"):
        built.state_for_resume()


def test_metrics_without_a_mean_are_no_fault():
    recorder = run(Stranger(lambda arrays, metrics: (arrays, MetricRecord({"hospital": 1}))))
    assert list(recorder.releases) == [1]
