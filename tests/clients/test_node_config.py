"""What a node's own configuration says: where its data lie, whatever the server believes."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY

from clients.app import DATA_ROOT, client_app
from clients.settings import HospitalSettings
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.settings import parse


@pytest.fixture
def asked(tmp_path: Path) -> Message:
    """A message to train on a dataset of which the server's folder has no file."""
    InProcessGrid(client_app, 2)  # a message asks this process who is writing it
    case = {"dataset": {"name": "dermamnist"}, "model": {"name": "mlp"}, "seed": 0}
    told = {"case": case, "hospitals": 2, "rounds": 1, "data_root": str(tmp_path / "servers")}
    settings = parse(HospitalSettings, told, "hospital-settings")
    config = ConfigRecord({"hospital-settings": settings.model_dump_json(), "server-round": 1})
    arrays = ArrayRecord([np.zeros(1, np.float32)])
    content = RecordDict({"arrays": arrays, "config": config})
    return Message(content, dst_node_id=7, message_type="train")


def _refusal(asked: Message, **node_config: str) -> str:
    node = {PARTITION_ID_KEY: 0, NUM_PARTITIONS_KEY: 2, **node_config}
    reply = client_app(asked, Context(1, 7, node, RecordDict(), {}))
    return str(reply.error.reason)


def test_a_node_knows_where_its_data_lie(asked: Message, tmp_path: Path) -> None:
    assert str(tmp_path / "servers") in _refusal(asked)
    said = _refusal(asked, **{DATA_ROOT: str(tmp_path / "own")})
    assert str(tmp_path / "own") in said and "servers" not in said
