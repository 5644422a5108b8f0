"""What a hospital can put into a reply, and that nothing of it reaches the aggregate."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp

from clients.hospital import ALWAYS_SAID, dealt
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.records import to_record
from fl_sim.errors import FlSimError
from strategies.base import STRATEGIES
from strategies.cohort import map_nodes
from strategies.uploads import LARGEST, MOST_EXAMPLES, Rejected, check_evaluation
from tests.engine.federation_kit import (
    Recorder,
    changed_upload,
    federate,
    initial,
    same,
    settings,
    strategy,
    tampered,
)

BIAS, VARIANCE, COUNTER = "4.bias", "1.running_var", "1.num_batches_tracked"


def metric(name, value):
    """A change of one metric, past Flower's own check of its type; None takes it away."""

    def change(reply):
        values = reply.content["metrics"].__dict__["_data"]
        values[name] = value
        if value is None:
            del values[name]

    return change


def record(name, content):
    """A change of one record; None takes it away."""

    def change(reply):
        reply.content.pop(name, None)
        if content is not None:
            reply.content[name] = content

    return change


def data(change_bytes):
    """A change of one array's bytes."""

    def change(reply):
        array = reply.content["arrays"][BIAS]
        array.data = change_bytes(array.data)

    return change


def element(name, value):
    def first(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return tampered(name, first)


def error(reason):
    return lambda reply: Message(error=Error(2, reason), metadata=reply.metadata)


def emptied(reply):
    reply.content = RecordDict()


CHANGES = {
    # tensors
    "nan": (tampered(BIAS, lambda t: t * float("nan")), "'4.bias' has values that are NaN"),
    "infinite": (element(BIAS, -float("inf")), "'4.bias' has values that are NaN or inf"),
    "one nan": (element("0.weight", float("nan")), "'0.weight' has values that are NaN"),
    "shape": (tampered(BIAS, lambda t: t[:1]), r"'4.bias' has shape \(1,\), not \(2,\)"),
    "same number": (tampered("4.weight", lambda t: t.T), "'4.weight' has shape"),
    "dtype": (tampered(BIAS, lambda t: t.double()), "'4.bias' is torch.float64"),
    "half": (tampered(BIAS, lambda t: t.half()), "'4.bias' is torch.float16"),
    "complex": (tampered(BIAS, lambda t: t.to(torch.complex64)), "is torch.complex64"),
    "missing": (tampered(BIAS, None), "lacks the tensor '4.bias'"),
    "3e38": (element(BIAS, 3e38), r"'4.bias' has values of 3e\+38"),
    "-3e38": (element("0.weight", -3e38), "'0.weight' has values"),
    "just too large": (element(BIAS, 2 * LARGEST), "'4.bias' has values"),
    "large mean": (element("1.running_mean", 1e30), "'1.running_mean' has values"),
    "negative variance": (element(VARIANCE, -1e-9), "'1.running_var' has negative variances"),
    "negative count": (tampered(COUNTER, lambda t: t - 1000), "counts -.* batches"),
    "absurd count": (tampered(COUNTER, lambda t: t + 2**40), "counts 10.* batches"),
    "largest count": (tampered(COUNTER, lambda t: t * 0 + 2**63 - 1), "counts 92.* batches"),
    "float count": (tampered(COUNTER, lambda t: t.double()), "is torch.float64"),
    # bytes
    "cut": (data(lambda b: b[:-3]), "cannot be read: '4.bias'"),
    "longer": (data(lambda b: b + b"payload!"), "cannot be read: '4.bias'"),
    "no array": (data(lambda b: b"PK\x03\x04"), "cannot be read: '4.bias'"),
    "no bytes": (data(lambda b: None), "cannot be read: '4.bias'"),
    # further entries
    "reserved name": (tampered("__metadata__", lambda t: torch.ones(1)), "called '__metadata__'"),
    "no name": (tampered("", lambda t: torch.ones(1)), "called ''"),
    "escape in a name": (tampered("\x1b[31m", lambda t: torch.ones(1)), r"called '\\x1b\[31m'"),
    "broken name": (tampered("\ud800", lambda t: torch.ones(1)), r"called '\\ud800'"),
    "long name": (tampered("x" * 10**5, lambda t: torch.ones(1)), r"called 'x{60}\.\.\.'"),
    "odd dtype": (tampered("h", lambda t: torch.ones(1, dtype=torch.complex128)), "complex128"),
    # metrics
    "no weight": (metric("num-examples", None), "lacks the metric 'num-examples'"),
    "no seconds": (metric("seconds", None), "lacks the metric 'seconds'"),
    "no attacked": (metric("attacked", None), "lacks the metric 'attacked'"),
    "zero": (metric("num-examples", 0), "'num-examples' is 0, not a positive"),
    "negative": (metric("num-examples", -16), "'num-examples' is -16, not a positive"),
    "nan weight": (metric("num-examples", float("nan")), "'num-examples' is nan"),
    "infinite weight": (metric("num-examples", float("inf")), "'num-examples' is inf"),
    "part of an image": (metric("num-examples", 15.5), "'num-examples' is 15.5, not a pos"),
    "1e15 images": (metric("num-examples", 10**15), "claims 1000000000000000 .* dealt 1[67]"),
    "1e15 as a float": (metric("num-examples", 1e15), "claims 1000000000000000 .* dealt 1[67]"),
    "fewer": (metric("num-examples", 1), "claims 1 training images .* dealt 1[67]"),
    "without end": (metric("num-examples", 10**400), "an integer of 1329 bits"),
    "list weight": (metric("num-examples", [16]), "'num-examples' is a list"),
    "text": (metric("seconds", "1.0"), "'seconds' is '1.0'"),
    "nothing": (metric("loss-task", float("nan")), "'loss-task' is nan"),
    "true": (metric("num-examples", True), "'num-examples' is True"),
    "list seconds": (metric("seconds", [1.0]), "'seconds' is a list"),
    "negative seconds": (metric("seconds", -1.0), "'seconds' is -1.0"),
    "seconds without end": (metric("seconds", 10**400), "'seconds' is an integer of"),
    "attacked twice": (metric("attacked", 2), "'attacked' is 2"),
    "attack value": (metric("attack-bpp", float("inf")), "'attack-bpp' is inf"),
    "spent less than nothing": (metric("dp-epsilon", -0.5), "'dp-epsilon' is -0.5"),
    "formula": (metric("attack-=1+1", 1.0), "a metric called 'attack-=1"),
    "minus": (metric("attack--1", 1.0), "a metric called 'attack--1'"),
    "no metric's name": (metric("attack-", 1.0), "a metric called 'attack-'"),
    "line in a name": (metric("attack-a\nb", 1.0), "a metric called 'attack-a'"),
    # records
    "nothing at all": (emptied, "0 ArrayRecords, 0 MetricRecords"),
    "no arrays": (record("arrays", None), "0 ArrayRecords, 1 MetricRecords"),
    "no metrics": (record("metrics", None), "1 ArrayRecords, 0 MetricRecords"),
    "arrays twice": (record("more", ArrayRecord()), "2 ArrayRecords"),
    "metrics twice": (record("more", MetricRecord()), "2 MetricRecords"),
    "a config": (record("more", ConfigRecord({"x": b"payload"})), "1 ConfigRecords"),
    "no array in it": (record("arrays", ArrayRecord()), "lacks the tensor '0.weight'"),
    # errors
    "error": (error("OSError: no disk\ntraceback"), "^OSError: no disk$"),
    "no reason": (error(None), "Flower's error 2"),
    "blank reason": (error(" \n "), "Flower's error 2"),
    "escape": (error("\x1b[31mred"), r"^\\x1b\[31mred$"),
    "long reason": (error("x" * 10**6), r"^x{500}\.\.\.$"),
}


def federate_checked(app, name="fedavg", hospitals=4):
    federation = settings(rounds=1, hospitals=hospitals)
    return federate(federation, name, app=app, dealt=dealt(federation), needed=ALWAYS_SAID)


@pytest.mark.parametrize(("change", "sentence"), CHANGES.values(), ids=CHANGES.keys())
def test_a_broken_reply_is_rejected_by_hospital(change, sentence):
    recorder, _ = federate_checked(changed_upload(change))
    assert list(recorder.failures) == [(1, 1)]
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(recorder.failures[1, 1])
    assert [h for _, h in recorder.uploads] == [0, 2, 3]


HARD = ("3e38", "negative variance", "absurd count", "1e15 images", "no seconds", "a config")


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_a_rejected_upload_is_as_if_it_had_never_come(name):
    """Bit for bit, whatever the aggregation: of nine hospitals, the last six send what is wrong."""
    bad = range(3, 9)

    def wrong(reply):
        return CHANGES[HARD[reply.metadata.src_node_id % 1000 - 4]][0](reply)

    with_them, _ = federate_checked(changed_upload(wrong, bad), name, 9)
    without, _ = federate_checked(changed_upload(error("gone"), bad), name, 9)
    for key, hospital in zip(HARD, bad, strict=True):
        with pytest.raises(AssertionError, match=CHANGES[key][1].replace("1[67]", "7")):
            raise AssertionError(with_them.failures[1, hospital])
    assert same(with_them.aggregates[1], without.aggregates[1])


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_the_largest_values_overflow_no_aggregation(name):
    """From all hospitals, of either sign, in two rounds; not even inside an optimiser."""
    app = changed_upload(
        lambda reply: tampered(BIAS, lambda t: torch.tensor([LARGEST, -LARGEST]))(reply), range(4)
    )
    with np.errstate(over="raise", invalid="raise"):
        try:
            recorder, _ = federate(settings(rounds=1), name, app=app)
        except FlSimError as caught:
            raise AssertionError(str(caught)) from caught
    assert all(np.isfinite(array).all() for array in recorder.server[1].values())
    assert bool(torch.isfinite(recorder.aggregates[1][BIAS]).all())


def test_all_claims_are_named_when_all_are_wrong():
    with pytest.raises(FlSimError, match=r"Round 1: no hospital .* hospitals 0, 1, 2, 3: the"):
        federate_checked(changed_upload(emptied, range(4)))


def test_where_nobody_knows_the_shares_a_claim_has_bounds():
    within, _ = federate(settings(rounds=1), app=changed_upload(metric("num-examples", 34)))
    assert within.metrics[1, 1]["num-examples"] == 34
    most = metric("num-examples", MOST_EXAMPLES + 1)
    beyond, _ = federate(settings(rounds=1), app=changed_upload(most))
    assert f"at most {MOST_EXAMPLES} are believed" in beyond.failures[1, 1]


def test_what_is_odd_but_harmless_is_accepted():
    def change(reply):
        reply.content["metrics"]["curve"] = [1.0, float("nan")]
        reply.content["metrics"]["attack-signs turned[dec]"] = 0.5
        reply.content["metrics"]["dp-epsilon"] = float("inf")
        tampered("hidden", lambda t: torch.full((3,), float("nan")))(reply)
        tampered(BIAS, lambda t: torch.full_like(t, LARGEST))(reply)
        tampered(VARIANCE, lambda t: t * 0)(reply)

    recorder, _ = federate_checked(changed_upload(change))
    assert not recorder.failures
    assert "curve" not in recorder.metrics[1, 1]
    assert recorder.metrics[1, 1]["attack-signs turned[dec]"] == 0.5


@pytest.mark.parametrize("change", [{"boost": 10.0}, {"boost": 10.0, "update_norm": 5.0}])
def test_a_boosted_attack_is_within_bounds(change):
    federation = settings(attack="fake-attack", **change)
    recorder, _ = federate(federation, dealt=dealt(federation), needed=ALWAYS_SAID)
    assert not recorder.failures


def test_a_half_precision_sum_has_its_own_bound():
    """65,504 is the largest number of float16; four hospitals may send a quarter of it each."""
    start = {**initial(), "half": torch.zeros(2, dtype=torch.float16)}
    sent = {0: 16000.0, 1: 17000.0, 2: -16000.0, 3: -17000.0}
    app = ClientApp()
    app.query()(lambda m, c: changed_upload(emptied)(m, c))

    @app.train()
    def train(message, context):
        number = context.node_config["partition-id"]
        state = {**start, "half": torch.full((2,), sent[number], dtype=torch.float16)}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"a": to_record(state), "m": metrics}), reply_to=message)

    recorder = Recorder()
    strategy(recorder, settings()).start(InProcessGrid(app, 4), to_record(start), 1)
    assert sorted(recorder.failures) == [(1, 1), (1, 3)]
    assert all("'half' has values" in reason for reason in recorder.failures.values())


def test_only_one_reply_of_those_that_were_asked_counts():
    class Echoing(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies[0].metadata.message_type != "train":
                return replies
            stranger = Message(error=Error(2, "who"), metadata=replies[0].metadata)
            return [*replies, stranger, replies[1]]

    recorder = Recorder()
    grid = Echoing(changed_upload(lambda reply: None), 4)
    strategy(recorder, settings()).start(grid, to_record(initial()), 1)
    assert not recorder.failures
    assert [h for _, h in recorder.uploads] == [0, 1, 2, 3]


# --------------------------------------------------------------------- other kinds of replies


def nodes(answer):
    app = ClientApp()
    app.query()(lambda message, context: answer(message, context))
    return map_nodes(InProcessGrid(app, 3), 3, 5.0)


def says(values):
    return lambda message, context: Message(
        RecordDict({"config": ConfigRecord(values)}), reply_to=message
    )


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (says({"hospital": 0}), "Two nodes say that they are hospital 0"),
        (says({"hospital": 3}), "numbered from 0 to 2"),
        (says({"hospital": -1}), "numbered from 0 to 2"),
        (says({"hospital": "0"}), "numbered from 0 to 2"),
        (says({"hospital": True}), "numbered from 0 to 2"),
        (says({"number": 0}), "hospital None"),
        (lambda m, c: Message(RecordDict(), reply_to=m), "0 ConfigRecords"),
        (lambda m, c: 1 / 0, "ZeroDivisionError"),
        (lambda m, c: Message(Error(2, None), reply_to=m), "Flower's error 2"),
    ],
)
def test_a_node_that_does_not_say_who_it_is_is_named(answer, word):
    with pytest.raises(FlSimError, match=word) as caught:
        nodes(answer)
    assert "\n" not in str(caught.value)


def test_evaluations_are_checked_too():
    start = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    good = MetricRecord({"num-examples": 2, "auc": 0.5})
    check_evaluation(Message(RecordDict({"m": good}), reply_to=start))
    bad = [
        RecordDict(),
        RecordDict({"m": MetricRecord({"auc": 0.5})}),
        RecordDict({"m": MetricRecord({"num-examples": 2, "auc": float("nan")})}),
        RecordDict({"m": good, "a": ArrayRecord({"w": Array(np.zeros(1))})}),
    ]
    for content in bad:
        with pytest.raises(Rejected):
            check_evaluation(Message(content, reply_to=start))


def test_a_failing_evaluation_is_left_out():
    app = changed_upload(lambda reply: None)

    @app.evaluate()
    def evaluate(message, context):
        number = context.node_config["partition-id"]
        if number == 2:
            raise SystemExit(1)
        metrics = MetricRecord({"num-examples": 10, "auc": float(number)})
        return Message(RecordDict({"m": metrics}), reply_to=message)

    recorder = Recorder()
    built = strategy(recorder, settings())
    grid = InProcessGrid(app, 4)
    result = built.start(grid, to_record(initial()), 1, evaluate_config=ConfigRecord())
    assert result.evaluate_metrics_clientapp[1]["auc"] == pytest.approx(4 / 3)
    assert recorder.failures == {(1, 2): "SystemExit: 1"}
