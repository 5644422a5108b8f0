"""The Flower ClientApp of every hospital, honest or malicious, on any engine.

A message carries everything that a hospital needs: the broadcast in an ArrayRecord and, in the
ConfigRecord ``config``, ``"hospital-settings"`` (JSON), ``"server-round"`` and, where the strategy
or the engine sets them, ``"proximal-mu"`` and ``"device"``. A node's own configuration says which
hospital it is (``"partition-id"``) and may say where its data lie (``"data-root"``). Whatever is
raised, by a plug-in too, becomes an error reply whose reason begins with one sentence; a traceback
may follow.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY

import fl_sim.engine.records as records
from clients.door import door_metrics, hospital_door
from clients.hospital import LocalResult, local_round
from clients.settings import HospitalSettings
from fl_sim.engine.guard import answering
from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry
from fl_sim.settings import parse

DATA_ROOT = "data-root"
"""Key of a node's configuration: folder of data files on its machine."""

client_app = ClientApp()


class LendingApp(ClientApp):
    """A ClientApp for networks that only the server's process knows: they travel with it.

    Args:
        app: the hospitals' side.
        models: networks by name; see :mod:`fl_sim.models.lent`.
    """

    def __init__(self, app: ClientApp, models: Mapping[str, ModelEntry]) -> None:
        super().__init__()
        self._app = app
        self._models = {n: replace(m, initial=None) for n, m in models.items()}

    def __call__(self, message: Message, context: Context) -> Message:
        """Make the networks known to this process, and run the app."""
        for name, entry in self._models.items():
            if MODELS.lent(name) is None:
                MODELS.lend(name, entry)
        return self._app(message, context)


@client_app.query()
@answering
def query(message: Message, context: Context) -> Message:
    """Reply with this node's hospital number, ``config["hospital"]``."""
    record = ConfigRecord({"hospital": _hospital(context)})
    return Message(RecordDict({"config": record}), reply_to=message)


@client_app.train()
@answering
def train(message: Message, context: Context) -> Message:
    """Train for one round; reply with ``arrays`` (the upload) and ``metrics``."""
    root = context.node_config.get(DATA_ROOT)
    return Message(
        _train(message.content, _hospital(context), None if root is None else str(root)),
        reply_to=message,
    )


def _train(content: RecordDict, hospital: int, data_root: str | None) -> RecordDict:
    config = next(iter(content.config_records.values()))
    settings = _settings(str(config["hospital-settings"]), data_root)
    server_round = _number(config, "server-round", int)
    broadcast = records.from_record(next(iter(content.array_records.values())))
    result = local_round(
        settings,
        hospital,
        server_round,
        broadcast,
        _number(config, "proximal-mu", float, 0.0),
        device=str(config.get("device", "cpu")),
    )
    metrics = MetricRecord(dict(result.metrics))
    if settings.door is None:
        return RecordDict({"arrays": records.to_record(result.state), "metrics": metrics})
    return RecordDict(_at_door(settings, hospital, server_round, result, broadcast, metrics))


def _at_door(
    settings: HospitalSettings,
    hospital: int,
    server_round: int,
    result: LocalResult,
    broadcast: Mapping[str, torch.Tensor],
    metrics: MetricRecord,
) -> dict[str, Any]:
    """Return what leaves and, of a malicious hospital, what would have left, for measuring."""
    passage = hospital_door(settings, hospital, server_round, result, broadcast)
    said: dict[str, Any] = {**door_metrics(passage.record), "reason": passage.record.reason}
    content: dict[str, Any] = {"metrics": metrics, records.DOOR: ConfigRecord(said)}
    if passage.state is not None:
        content["arrays"] = records.to_record(passage.state)
    if hospital in settings.malicious or passage.state is None:
        content[records.BEFORE_DOOR] = records.to_record(result.state)
    return content


def _hospital(context: Context) -> int:
    return int(context.node_config[PARTITION_ID_KEY])


def _number(config: ConfigRecord, key: str, kind: type[Any], default: float | None = None) -> Any:
    value = config.get(key, default)
    if not isinstance(value, (int, float)):
        raise FlSimError(f"The message's config lacks the number '{key}'.")
    return kind(value)


@lru_cache(maxsize=4)
def _settings(text: str, data_root: str | None) -> HospitalSettings:
    """Read what the server says; where a hospital's data lie, its own node knows better."""
    import json

    values = json.loads(text)
    if data_root is not None:
        values["data_root"] = data_root
    return parse(HospitalSettings, values, "hospital-settings")
