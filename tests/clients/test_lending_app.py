"""A network that was handed over reaches processes that do not know it."""

import pickle
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from clients.app import LendingApp
from fl_sim.models import MODELS
from fl_sim.models.lent import lend_for_scenario


class Asking(ClientApp):
    """Replies nothing, and notes what it knows of a network when it is called."""

    known: Any = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __call__(self, message: Message, context: Context) -> Message:
        Asking.known = MODELS.lent(self._name)
        return message


def test_a_network_travels_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    name = lend_for_scenario(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    entry = MODELS.lent(name)
    assert entry is not None
    sent = pickle.dumps(LendingApp(Asking(name), {name: entry}))

    monkeypatch.setattr(MODELS, "_outside", {})  # as in a process that has just begun
    message: Any = object()
    context: Any = None
    assert pickle.loads(sent)(message, context) is message
    assert Asking.known is not None and Asking.known.initial is None
    network = Asking.known.build(None)
    assert network(torch.rand(3, 3, 2, 2)).shape == (3, 2)
