"""Replies one at a time: as they come, and with few messages under way."""

import threading
import time

import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fl_sim.engine import EngineSettings, run
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.stoppable import AHEAD, StoppableGrid, Stopped
from fl_sim.engine.through import OwnTimeGrid, ThroughGrid, each_reply
from fl_sim.engine.watched import WatchedGrid
from tests.engine.federation_kit import Steps

IN_PROCESS = EngineSettings(engine="inprocess")


def asked(grid):
    kind = MessageType.TRAIN
    return [Message(RecordDict(), dst_node_id=n, message_type=kind) for n in grid.get_node_ids()]


def working(said):
    app = ClientApp()

    @app.train()
    def work(message, context):
        said.append("work")
        return Message(RecordDict(), reply_to=message)

    return app


def test_a_hospital_works_when_its_reply_is_asked_for():
    steps = Steps()

    def main(grid):
        watched = WatchedGrid(OwnTimeGrid(grid, lambda: 1), steps)
        for _ in each_reply(watched, asked(grid), 60.0):
            steps.said.append("taken")

    run(IN_PROCESS, main, working(steps.said), 2)
    assert steps.said == [("hospitals back", 2), *["work", 1, "taken"] * 2, "end"]


def test_a_round_that_is_left_in_the_middle_ends_its_piece():
    steps = Steps()

    def main(grid):
        replies = each_reply(WatchedGrid(grid, steps), asked(grid), 60.0)
        next(replies)
        replies.close()

    run(IN_PROCESS, main, working(steps.said), 3)
    assert steps.said == [("hospitals back", 3), "work", 1, "end"]


def test_one_that_changes_the_exchange_is_asked_in_flowers_way():
    """Whoever wrote a grid before there was ``each_reply`` still decides what comes back."""

    class Deaf(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return list(super().send_and_receive(messages, timeout=timeout))[1:]

    deaf = Deaf(working([]), 3)
    assert len(list(each_reply(ThroughGrid(deaf), asked(deaf)))) == 2
    patched = InProcessGrid(working([]), 3)
    vars(patched)["send_and_receive"] = lambda messages, timeout=None: []
    assert list(each_reply(patched, asked(patched))) == []


def test_one_that_is_late_is_an_error_reply(monkeypatch):
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr("fl_sim.engine.guard._clock", lambda: float(next(clock)))
    grid = InProcessGrid(working([]), 2)
    assert all(reply.has_error() for reply in each_reply(grid, asked(grid), 5.0))
    assert not any(reply.has_error() for reply in each_reply(grid, asked(grid), 500.0))


class Runtime(InProcessGrid):
    """Flower's grid: what was pushed is done when it is pulled, two at a time, last ones first."""

    def __init__(self, hospitals):
        super().__init__(working([]), hospitals)
        self.under_way = self.most = 0

    def push_messages(self, messages):
        ids = list(super().push_messages(messages))
        self.under_way += len(ids)
        self.most = max(self.most, self.under_way)
        return ids

    def pull_messages(self, message_ids):
        done = sorted(message_ids)[-2:]
        self.under_way -= len(done)
        return super().pull_messages(done)


def test_few_messages_are_under_way_and_all_are_answered():
    runtime = Runtime(60)
    grid = StoppableGrid(runtime, threading.Event(), lambda: 2)
    replies = list(grid.each_reply(asked(runtime), timeout=60.0))
    assert len({reply.metadata.src_node_id for reply in replies}) == 60
    assert runtime.most == 3 * AHEAD
    assert len(grid.send_and_receive(asked(runtime))) == 60


def test_time_of_whoever_takes_the_replies_is_not_the_hospitals():
    runtime = Runtime(6)
    grid = StoppableGrid(runtime, threading.Event(), lambda: 1)
    taken = 0
    for _ in grid.each_reply(asked(runtime), timeout=3.0):
        time.sleep(0.8)
        taken += 1
    assert taken == 6
    assert list(grid.each_reply(asked(runtime), timeout=0.0)) == []


def test_the_end_of_the_runtime_ends_the_wait():
    stop = threading.Event()
    runtime = Runtime(6)
    replies = StoppableGrid(runtime, stop, lambda: 1).each_reply(asked(runtime))
    next(replies)
    stop.set()
    with pytest.raises(Stopped):
        list(replies)
