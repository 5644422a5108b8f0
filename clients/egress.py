"""A Flower mod that puts a door on any ClientApp: nothing leaves a hospital unseen.

A mod belongs to whoever writes the app. A hospital that runs strangers' apps wraps them itself, by
:func:`behind_door`, so that the check is not theirs to leave out.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from torch import nn

from clients.door import Clean, DoorRecord, Passage, pass_door, plain
from clients.settings import DoorSettings
from fl_sim.auditing.architecture import Statement
from fl_sim.defenses.base import DEFENSES
from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError, printable
from fl_sim.faults import cause
from fl_sim.models.pixels import Normalization
from fl_sim.randomness import derive_seed
from fl_sim.settings import parse
from fl_sim.verbs.arrays import Cleaning, names_in
from fl_sim.verbs.auditing import statement_of

Call = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Call], Message]
State = dict[str, torch.Tensor]

DIGITS = 6
MOST_METRICS = 32
"""Significant digits of each number beside the arrays, and how many numbers may leave at most."""

USUAL_METRICS = (
    "num-examples",
    "loss",
    "accuracy",
    *("train_loss", "train_acc", "train_accuracy"),
    *("eval_loss", "eval_acc", "eval_accuracy"),
)
"""Names of numbers that may leave: a name of the app's choice could say anything."""

_log = logging.getLogger("flwr")  # where the app's own lines go
_TRAIN = "train"


def egress_check(
    policy: DoorSettings | Mapping[str, Any] | None = None,
    *,
    model: Any = None,
    images: Any = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    size: int | None = None,
    metrics: Iterable[str] = USUAL_METRICS,
    log: Path | str | None = None,
    seed: int = 0,
) -> Mod:
    """Return a mod that checks every reply of a ClientApp before it leaves.

    For example ``ClientApp(mods=[egress_check({"clip": 5.0}, log="door.jsonl")])``. It comes first
    among the mods, so that it sees what the others made of a reply.

    A reply to a training message may hold one ArrayRecord of the message's entries, which passes
    :func:`clients.door.pass_door`, and one MetricRecord of at most 32 numbers under known names,
    rounded to six significant digits; any other reply only such numbers. What is more than that
    withholds the whole reply: the server gets an error with the reason. If the check cannot be
    done, nothing leaves.

    Args:
        policy: settings of the door, see :class:`clients.settings.DoorSettings`.
        model: the network, a function that makes it, or its name: whom the audit takes the arrays
            for, and what is cleaned. Without it the audit goes by names and shapes.
        images: the hospital's own, ``(images, labels)`` or as ``fl_sim.clean`` takes them, or a
            function of Flower's ``Context`` that returns them; only to clean with.
        normalize: how the network takes pixels, for cleaning.
        classes, size: outputs and side of images of the network, where it does not tell.
        metrics: names of numbers that may leave; by default :data:`USUAL_METRICS`.
        log: file that a line of JSON is appended to for each reply; otherwise it is logged.
        seed: of the cleaning's randomness.

    Raises:
        FlSimError: if a setting is wrong, or a cleaning is asked for without model and images.
    """
    settings = (
        policy
        if isinstance(policy, DoorSettings)
        else parse(DoorSettings, dict(policy or {}), "The door")
    )
    if settings.clean is not None and (model is None or images is None):
        raise FlSimError(
            f"The door cleans with '{settings.clean.name}', which takes the network and the "
            f"hospital's images: give model= and images=."
        )
    made = model if model is None or isinstance(model, str | nn.Module) else model()
    network = None
    if settings.audit and made is not None:
        network = statement_of(made, classes, None, size)
    known = frozenset(metrics)
    door = _Door(settings, made, network, images, normalize, classes, known, seed)

    def mod(message: Message, context: Context, call_next: Call) -> Message:
        asked = _arrays(message) if _trains(message) else None
        broadcast = {} if asked is None else from_record(asked)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        began = time.perf_counter()
        try:
            passage, content = door.let_out(message, context, reply, broadcast)
        except Exception as error:
            passage = Passage(None, DoorRecord("withheld", reason=_reason(error)))
            content = None
        spent = time.perf_counter() - began
        _note(log, message, context, passage.record, spent)
        if content is None:
            reason = f"the hospital's door withheld the reply: {passage.record.reason}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.content = content
        return reply

    return mod


def behind_door(app: ClientApp, mod: Mod) -> ClientApp:
    """Return an app that is another one behind a door, which that one cannot leave out.

    Args:
        app: any ClientApp, with mods of its own or without.
        mod: from :func:`egress_check`.
    """
    return _Behind(app, mod)


class _Behind(ClientApp):
    def __init__(self, app: ClientApp, mod: Mod) -> None:
        super().__init__()
        self._app, self._mod = app, mod

    def __call__(self, message: Message, context: Context) -> Message:
        return self._mod(message, context, self._app)


@dataclass(frozen=True)
class _Door:
    """Who checks the contents of replies; see :func:`egress_check`."""

    settings: DoorSettings
    model: Any
    network: Statement | None
    images: Any
    normalize: Normalization
    classes: int | None
    metrics: frozenset[str]
    seed: int

    def let_out(
        self, message: Message, context: Context, reply: Message, broadcast: State
    ) -> tuple[Passage, RecordDict | None]:
        """Return the passage, and what leaves: ``None`` where nothing does."""
        problem = _unasked(message, reply, self.metrics)
        if problem:
            return Passage(None, DoorRecord("withheld", reason=problem)), None
        metrics = reply.content.metric_records.values()
        content = RecordDict({"metrics": _rounded(next(iter(metrics)))} if metrics else {})
        arrays = _arrays(reply)
        if arrays is None:
            return Passage({}, DoorRecord("passed")), content
        names = self._names(broadcast)
        sent = _renamed(broadcast, names)
        passage = pass_door(
            _renamed(from_record(arrays), names),
            sent,
            self.settings,
            self.network,
            self._cleaner(context, message, sent),
        )
        if passage.state is None:
            return passage, None
        back = dict(zip(sent, broadcast, strict=True))
        key = next(iter(message.content.array_records))
        content[key] = to_record({back[name]: value for name, value in passage.state.items()})
        return passage, content

    def _names(self, broadcast: State) -> dict[str, str]:
        """Return the network's names of arrays that are numbered in its order."""
        return names_in(self.model, broadcast) if isinstance(self.model, nn.Module) else {}

    def _cleaner(self, context: Context, message: Message, sent: State) -> Clean | None:
        if self.settings.clean is None:
            return None
        choice = self.settings.clean
        cleaning = Cleaning(
            self.model,
            self.images(context) if callable(self.images) else self.images,
            choice.build(DEFENSES, f"The defence '{choice.name}'"),
            seed=derive_seed(self.seed, "door", context.node_id),
            normalize=self.normalize,
            classes=self.classes,
            device=None,
            settings={},
        )
        cleaning.require(sent)
        return lambda state, reference: cleaning(state, _round(message), reference)[0]


def _arrays(message: Message) -> ArrayRecord | None:
    return next(iter(message.content.array_records.values()), None)


def _trains(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == _TRAIN


def _renamed(state: State, names: Mapping[str, str]) -> State:
    return {names.get(name, name): value for name, value in state.items()}


def _unasked(message: Message, reply: Message, known: frozenset[str]) -> str:
    """Say what in a reply nobody asked for, if anything."""
    kind, content = message.metadata.message_type, reply.content
    trains = _trains(message) and bool(message.content.array_records)
    for what, records, most in (
        ("ArrayRecord", content.array_records, 1 if trains else 0),
        ("ConfigRecord", content.config_records, 0),
        ("MetricRecord", content.metric_records, 1),
    ):
        if len(records) > most:
            return f"it holds {len(records)} {what}s, and a reply of type '{kind}' may hold {most}"
    metrics = [pair for record in content.metric_records.values() for pair in record.items()]
    unknown = next((name for name, _ in metrics if name not in known), None)
    if unknown is not None:
        name = printable(unknown)[:80]
        return f"it holds the number '{name}'; name it in metrics= if it may leave"
    numbers = sum(len(value) if isinstance(value, list) else 1 for _, value in metrics)
    if numbers > MOST_METRICS:
        return f"it holds {numbers} numbers beside the arrays, and {MOST_METRICS} may leave"
    return ""


def _rounded(record: MetricRecord) -> MetricRecord:
    """Return a record with numbers of :data:`DIGITS` significant digits."""

    def one(value: Any) -> Any:
        return type(value)(float(f"{value:.{DIGITS - 1}e}")) if math.isfinite(value) else value

    return MetricRecord(
        {n: [one(v) for v in x] if isinstance(x, list) else one(x) for n, x in record.items()}
    )


def _round(message: Message) -> int:
    """Return the number of the round where the message says it; 1 where it does not."""
    for config in message.content.config_records.values():
        number = config.get("server-round")
        if isinstance(number, int):
            return number
    return 1


def _note(
    log: Path | str | None, message: Message, context: Context, record: DoorRecord, seconds: float
) -> None:
    """Append a line to the hospital's own record, or log it."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "node": context.node_id,
        "round": _round(message),
        "type": message.metadata.message_type,
        **plain(record),
        "seconds": seconds,
    }
    if log is None:
        _log.info("Door of node %d: %s %s", context.node_id, record.action, record.reason)
        return
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _reason(error: Exception) -> str:
    said = str(error) if isinstance(error, FlSimError) else cause(error)
    return f"it could not be checked: {said}"
