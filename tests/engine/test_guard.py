import asyncio
import os
import signal

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fl_sim.engine import EngineSettings, run
from fl_sim.engine.guard import GuardedApp, guarded
from fl_sim.engine.through import ENGINE_SECONDS, OwnTimeGrid
from fl_sim.errors import FlSimError

IN_PROCESS = EngineSettings(engine="inprocess")


def messages(grid):
    nodes = grid.get_node_ids()
    return [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in nodes]


def reasons(call, hospitals=2):
    """The first line of each hospital's error; hospital 1 makes the call."""
    app = ClientApp()

    @app.query()
    def answer(message, context):
        if context.node_config["partition-id"] == 1:
            return call(message)
        return Message(RecordDict(), reply_to=message)

    def main(grid):
        replies = list(grid.send_and_receive(messages(grid)))
        return [r.error.reason.splitlines()[0] if r.has_error() else None for r in replies]

    return run(IN_PROCESS, main, app, hospitals)


class Odd(BaseException):
    def __str__(self):
        raise RuntimeError("no words")


def raising(error):
    def call(message):
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SystemExit(5), "SystemExit: 5"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (StopIteration(), "StopIteration"),
        (Odd(), "Odd"),
        (FlSimError("The disk is full."), "The disk is full."),
        (ValueError("\n\n\x1b[31mred\x1b[0m\nmore"), "ValueError: \\x1b[31mred\\x1b[0m"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_hospital_raises_is_its_own_error(error, sentence):
    assert reasons(raising(error)) == [None, sentence]


def test_an_own_error_is_a_sentence_without_a_traceback():
    reply = GuardedApp(ClientApp())  # no function for any message
    app = ClientApp()
    app.query()(raising_with_context(FlSimError("Mine.")))
    (answer,) = run(IN_PROCESS, lambda g: list(g.send_and_receive(messages(g))), app, 1)
    assert answer.error.reason == "Mine."
    assert guarded(reply) is reply


def raising_with_context(error):
    def call(message, context):
        raise error

    return call


def another(message):
    return Message(RecordDict(), dst_node_id=1, message_type=MessageType.QUERY)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda message: None, "NoneType"),
        (lambda message: RecordDict(), "RecordDict"),
        (lambda message: message, "no reply"),
        (another, "no reply"),
    ],
)
def test_what_is_no_reply_is_an_error(call, word):
    first, second = reasons(call)
    assert first is None and word in second


def test_a_hospital_cannot_stamp_its_own_time():
    def lying(message):
        content = RecordDict({"fl-sim-own-time": ConfigRecord({"seconds": 0.0, "x": 1})})
        return Message(content, reply_to=message)

    app = ClientApp()
    app.query()(lambda message, context: lying(message))
    (reply,) = run(IN_PROCESS, lambda g: list(g.send_and_receive(messages(g))), app, 1)
    assert not list(reply.content)


def interrupting(message):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # the handler runs between two steps
        pass
    return Message(RecordDict(), reply_to=message)


def swallowing(message):
    try:
        interrupting(message)
    except BaseException:
        return None


@pytest.mark.parametrize("call", [interrupting, swallowing])
def test_ctrl_c_ends_the_run_whatever_a_hospital_makes_of_it(call):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        reasons(call)
    assert signal.getsignal(signal.SIGINT) is before


class Waiting:
    """A grid that notes how long it is to wait."""

    def __init__(self):
        self.timeouts = []

    def send_and_receive(self, messages, *, timeout=None):
        self.timeouts.append(timeout)
        return []


@pytest.mark.parametrize(("at_once", "turns"), [(1, 5), (2, 3), (4, 2), (5, 1), (8, 1), (0, 5)])
def test_the_wait_is_for_as_many_turns_as_there_are(at_once, turns):
    grid = Waiting()
    own = OwnTimeGrid(grid, lambda: at_once)
    five = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in range(5)]
    own.send_and_receive(five, timeout=10.0)
    own.send_and_receive(five)
    assert grid.timeouts == [10.0 * turns + ENGINE_SECONDS, None]
