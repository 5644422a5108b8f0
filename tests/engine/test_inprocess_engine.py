import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from clients.app import client_app
from fl_sim.engine import EngineSettings, guard, run
from fl_sim.errors import FlSimError

IN_PROCESS = EngineSettings(engine="inprocess")


def ask(grid, content=None, kind=MessageType.QUERY, **how):
    content = content or RecordDict()
    messages = [Message(content, dst_node_id=n, message_type=kind) for n in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, **how))


def test_every_node_is_a_hospital():
    replies = run(IN_PROCESS, ask, client_app, 3)
    assert [reply.content["config"]["hospital"] for reply in replies] == [0, 1, 2]


def test_main_returns_and_raises_as_it_is():
    assert run(IN_PROCESS, lambda grid: 42, client_app, 1) == 42

    def fail(grid):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(IN_PROCESS, fail, client_app, 1)


def test_no_hospital_is_refused():
    with pytest.raises(FlSimError, match="at least one hospital"):
        run(IN_PROCESS, ask, client_app, 0)


def test_a_context_lasts_and_messages_are_copies():
    app = ClientApp()

    @app.query()
    def count(message, context):
        state = context.state.setdefault("seen", ConfigRecord({"n": 0}))
        state["n"] += 1
        message.content["config"]["list"].append(1)
        return Message(RecordDict({"seen": state}), reply_to=message)

    def main(grid):
        content = RecordDict({"config": ConfigRecord({"list": [0]})})
        first, second = (ask(grid, content)[0] for _ in range(2))
        assert content["config"]["list"] == [0]
        return first.content["seen"]["n"], second.content["seen"]["n"]

    assert run(IN_PROCESS, main, app, 1) == (1, 2)


def test_an_exception_becomes_an_error_reply_and_is_logged(caplog):
    caplog.set_level("DEBUG", "fl_sim.engine.guard")
    app = ClientApp()

    @app.query()
    def fail(message, context):
        raise OSError("no disk")

    (reply,) = run(IN_PROCESS, ask, app, 1)
    assert reply.has_error()
    assert reply.error.reason.splitlines()[0] == "OSError: no disk"
    assert "no disk" in caplog.text and "Traceback" in caplog.text


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_late_hospital_is_late_and_not_those_after_it(slow, monkeypatch):
    now = 0.0
    monkeypatch.setattr(guard, "_clock", lambda: now)
    app = ClientApp()

    @app.query()
    def work(message, context):
        nonlocal now
        hospital = context.node_config["partition-id"]
        now += 6.0 if hospital == slow else 2.9
        return Message(RecordDict({"config": ConfigRecord({"n": hospital})}), reply_to=message)

    replies = run(IN_PROCESS, lambda grid: ask(grid, timeout=3.0), app, 3)
    assert [reply.has_error() for reply in replies] == [h == slow for h in range(3)]
    assert "late" in replies[slow].error.reason and "6.0 seconds" in replies[slow].error.reason
    kept = [dict(reply.content) for reply in replies if not reply.has_error()]
    assert kept == [{"config": ConfigRecord({"n": h})} for h in range(3) if h != slow]
    pulled = run(IN_PROCESS, lambda g: list(g.pull_messages(push(g))), app, 3)
    assert all(list(reply.content) == ["config"] for reply in pulled)


def push(grid):
    content, kind = RecordDict(), MessageType.QUERY
    return grid.push_messages(
        [Message(content, dst_node_id=n, message_type=kind) for n in grid.get_node_ids()]
    )
