"""Error replies that the SuperLink gives in a lost node's place are told as that node's."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.through import DeployedGrid

app = ClientApp()


@app.query()
def answer(message: Message, context: Any) -> Message:
    return Message(RecordDict(), reply_to=message)


class LosingGrid(InProcessGrid):
    """A grid that has lost a node: the SuperLink answers for it, as Flower's does."""

    def __init__(self, lost: int, code: int) -> None:
        super().__init__(app, 3)
        self._lost = list(self._contexts)[lost]
        self._code = code

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._instead(reply) for reply in super().pull_messages(message_ids)]

    def _instead(self, reply: Message) -> Message:
        if reply.metadata.src_node_id != self._lost:
            return reply
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        error = Error(self._code, "Error: Node Unavailable — The destination node failed")
        return Message(error=error, metadata=reply.metadata)


def _replies(code: int) -> tuple[list[int], dict[int, Message]]:
    grid = DeployedGrid(LosingGrid(1, code))
    nodes = list(grid.get_node_ids())
    asked = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    return nodes, {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(asked)}


def test_a_lost_node_is_known_by_its_own_number() -> None:
    nodes, replies = _replies(ErrorCode.NODE_UNAVAILABLE)
    assert set(replies) == set(nodes)
    assert [replies[node].has_error() for node in nodes] == [False, True, False]
    assert replies[nodes[1]].error.reason == "its SuperNode is no longer connected"


def test_other_errors_keep_their_reason() -> None:
    nodes, replies = _replies(ErrorCode.MESSAGE_UNAVAILABLE)
    assert set(replies) == set(nodes)
    assert "Unavailable" in str(replies[nodes[1]].error.reason)
