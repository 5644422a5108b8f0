"""Replies are reported when they come, not when the last one has come."""

from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from clients.app import client_app
from fl_sim.engine import EngineSettings, run
from fl_sim.engine.through import OwnTimeGrid
from fl_sim.engine.watched import WatchedGrid
from tests.engine.federation_kit import Steps

IN_PROCESS = EngineSettings(engine="inprocess")


def asked(grid, kind):
    return [Message(RecordDict(), dst_node_id=n, message_type=kind) for n in grid.get_node_ids()]


def working(steps):
    """A hospital that notes when it works between what the server's side is told."""
    app = ClientApp()

    @app.train()
    def work(message, context):
        steps.said.append("work")
        if context.node_config["partition-id"] == 1:
            raise OSError("no disk")
        return Message(RecordDict(), reply_to=message)

    return app


def test_each_reply_is_a_step_before_the_next_hospital_works():
    steps = Steps()

    def main(grid):
        inner = grid.pull_messages
        watched = WatchedGrid(OwnTimeGrid(grid, lambda: 1), steps)
        replies = list(watched.send_and_receive(asked(grid, MessageType.TRAIN), timeout=60.0))
        assert grid.pull_messages == inner
        return replies

    replies = run(IN_PROCESS, main, working(steps), 3)
    assert steps.said == [("hospitals back", 3), *["work", 1] * 3, "end"]
    # One that failed is back, too.
    assert [reply.has_error() for reply in replies] == [False, True, False]


def test_a_round_that_breaks_off_ends_its_piece_and_leaves_the_grid_as_it_was():
    steps = Steps()

    def main(grid):
        inner = grid.pull_messages

        def broken(ids):
            raise KeyboardInterrupt

        grid.pull_messages = broken
        try:
            WatchedGrid(grid, steps).send_and_receive(asked(grid, MessageType.TRAIN))
        except KeyboardInterrupt:
            assert grid.pull_messages is broken
            grid.pull_messages = inner
        return steps.said

    assert run(IN_PROCESS, main, client_app, 2) == [("hospitals back", 2), "end"]


def test_questions_are_not_reported():
    steps = Steps()
    replies = run(
        IN_PROCESS,
        lambda grid: WatchedGrid(grid, steps).send_and_receive(asked(grid, MessageType.QUERY)),
        client_app,
        2,
    )
    assert len(list(replies)) == 2 and steps.said == []
